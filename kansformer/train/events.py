"""What TensorBoard shows of a run: settings, pictures, figures of each epoch, learned functions."""

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
RECORDED = 64  # pictures whose way through the blocks is recorded for the functions
EDGES = 4  # functions of each layer
METRICS = ("val_acc1", "val_loss")  # beside the settings in the table of runs


class Events:
    """The events of a run, in one file of a folder."""

    def __init__(self, folder: Path) -> None:
        self.writer = SummaryWriter(str(folder))

    def add_settings(self, settings: dict[str, Any]) -> None:
        """The HPARAMS tab: all settings, with the figures of METRICS as they come.

        `SummaryWriter.add_hparams` would make a second folder, which TensorBoard shows as a run.
        """
        plain = {
            name: value if isinstance(value, bool | int | float | str) else str(value)
            for name, value in settings.items()
        }
        file_writer: Any = self.writer.file_writer
        for part in hparams(plain, dict.fromkeys(METRICS, 0.0)):
            file_writer.add_summary(part)

    def add_pictures(
        self, dataset: PictureDataset, places: Sequence[int], preprocessing: Preprocessing
    ) -> None:
        """The first training pictures at these places as the first epoch shows them, in a grid."""
        shown = [preprocessing.denormalise(dataset[0, place][0]) for place in places[:PICTURES]]
        grid = make_grid(torch.stack([TF.pil_to_tensor(image) for image in shown]), nrow=4)
        self.writer.add_image("augmented training pictures", grid, 0)

    def add_epoch(self, row: dict[str, Any]) -> None:
        """The figures of an epoch."""
        for key, value in row.items():
            self.writer.add_scalar(key, value, row["epoch"])
        self.writer.flush()

    def add_functions(self, model: TrainedModel, pictures: Pictures, epoch: int) -> None:
        """The strongest learned functions of the first and the last block; none of an MLP."""
        for block, figure in function_figures(model, pictures).items():
            with Image.open(BytesIO(as_png(figure))) as image:
                drawn = TF.pil_to_tensor(image.convert("RGB"))
            self.writer.add_image(f"learned functions, block {block}", drawn, epoch)

    def close(self) -> None:
        """Writes what is left."""
        self.writer.close()


def function_figures(model: TrainedModel, pictures: Pictures) -> dict[int, Figure]:
    """Figures of the strongest functions of the first and the last block, none of an MLP's.

    Args:
        model: on the CPU.
        pictures: those of the training, of which a few show what flows into the functions.
    """
    from kansformer.interpret.blocks_drawing import draw_functions

    if model.config.ffn == "mlp":
        return {}
    some = pictures.take(torch.arange(len(pictures))[:: -(-len(pictures) // RECORDED)].numpy())
    dataset = PictureDataset(some, model.preprocessing, skip_broken=True)
    records = record(model, (images for images, _ in make_loader(dataset, RECORDED)))
    figures = {}
    for block in sorted({0, model.config.depth - 1}):
        scores = score_block(model, block, records[block])
        figures[block] = draw_functions(
            block, block_curves(model, block, records[block], scores, EDGES)
        )
    return figures
