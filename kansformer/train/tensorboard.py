"""TensorBoard logging: settings, training pictures, metrics of each epoch, learned functions."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch.utils.tensorboard.summary import hparams
from torch.utils.tensorboard.writer import SummaryWriter
from torchvision.transforms import functional as TF
from torchvision.utils import make_grid

from kansformer.checkpoint import TrainedModel
from kansformer.data import PictureDataset, Preprocessing, make_loader
from kansformer.figures import as_png
from kansformer.interpret.block_activations import record
from kansformer.interpret.block_scores import score_block
from kansformer.interpret.inspection import block_curves

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from kansformer.data import Pictures

PICTURES = 16  # augmented ones, in rows of 4
RECORDED = 64  # pictures whose activations are recorded for the functions
EDGES = 4  # functions shown of each layer
METRICS = ("val_acc1", "val_loss")  # shown with the settings in the HPARAMS tab


class TensorBoardLog:
    """The TensorBoard events of a run, in one file of a folder."""

    def __init__(self, folder: Path) -> None:
        self.writer = SummaryWriter(str(folder))

    def add_settings(self, settings: dict[str, Any]) -> None:
        """The HPARAMS tab: all settings, with METRICS as they are logged.

        `SummaryWriter.add_hparams` would create a subfolder, which TensorBoard shows as another
        run.
        """
        plain = {
            name: value if isinstance(value, bool | int | float | str) else str(value)
            for name, value in settings.items()
        }
        file_writer: Any = self.writer.file_writer
        for part in hparams(plain, dict.fromkeys(METRICS, 0.0)):
            file_writer.add_summary(part)

    def add_pictures(
        self, dataset: PictureDataset, indices: Sequence[int], preprocessing: Preprocessing
    ) -> None:
        """A grid of the first of these training pictures, augmented as in the first epoch."""
        shown = [preprocessing.denormalize(dataset[0, index][0]) for index in indices[:PICTURES]]
        grid = make_grid(torch.stack([TF.pil_to_tensor(image) for image in shown]), nrow=4)
        self.writer.add_image("augmented training pictures", grid, 0)

    def add_epoch(self, row: dict[str, Any]) -> None:
        """The metrics of an epoch, a row of metrics.jsonl."""
        for key, value in row.items():
            self.writer.add_scalar(key, value, row["epoch"])
        self.writer.flush()

    def add_functions(self, model: TrainedModel, pictures: Pictures, epoch: int) -> None:
        """The strongest learned functions of the first and the last block; an MLP has none."""
        for block, figure in function_figures(model, pictures).items():
            with Image.open(BytesIO(as_png(figure))) as image:
                drawn = TF.pil_to_tensor(image.convert("RGB"))
            self.writer.add_image(f"learned functions, block {block}", drawn, epoch)

    def close(self) -> None:
        """Writes what is buffered and closes the file."""
        self.writer.close()


def function_figures(model: TrainedModel, pictures: Pictures) -> dict[int, Figure]:
    """Figures of the strongest functions of the first and the last block, by block; MLPs have none.

    Args:
        model: on the CPU.
        pictures: the training pictures; the functions' inputs are recorded on some of them.
    """
    from kansformer.interpret.blocks_drawing import draw_functions

    if model.config.ffn == "mlp":
        return {}
    every = -(-len(pictures) // RECORDED)
    some = pictures.take(torch.arange(len(pictures))[::every].numpy())
    dataset = PictureDataset(some, model.preprocessing, skip_broken=True)
    records = record(model, (images for images, _ in make_loader(dataset, RECORDED)))
    figures = {}
    for block in sorted({0, model.config.depth - 1}):
        scores = score_block(model, block, records[block])
        figures[block] = draw_functions(
            block, block_curves(model, block, records[block], scores, EDGES)
        )
    return figures
