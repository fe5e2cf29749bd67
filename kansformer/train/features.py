"""Features of pictures: what a model gives to its head, computed once and kept in the run's folder.

A run with other settings of the head, in the same folder or beside it, reads them again.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
import torch
from safetensors import SafetensorError
from safetensors.numpy import save as to_safetensors
from torch import Tensor
from torch.utils.data import DataLoader

from kansformer.data import PictureDataset, Pictures, Preprocessing
from kansformer.data.augment import least_side, make_augmentation
from kansformer.data.dataset import NO_LABEL
from kansformer.data.inspection import file_key
from kansformer.errors import ignore_pillow_warnings
from kansformer.files import make_output_folder, write_bytes
from kansformer.progress import progress_bar
from kansformer.train.distributed import Ranks
from kansformer.train.run_folder import checksum
from kansformer.words import duration
from models.kan import compile_without_gradients
from models.vit_model import VisionTransformer

METADATA_KEY = "kansformer-features"
TOKENS_AT_ONCE = 16_384  # in a batch
WORTH_A_LINE = 60.0  # seconds that are left
SAVE_SECONDS = 30.0  # after which a batch's features are written with those before it


@dataclass(frozen=True)
class Features:
    """Features (N, D) in float32 and labels (N,) of pictures, without those that are unreadable."""

    values: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


def join(parts: Sequence[Features]) -> Features:
    """The features of all parts, in order."""
    return Features(
        np.concatenate([part.values for part in parts]),
        np.concatenate([part.labels for part in parts]),
    )


def pooling_is_free(model: VisionTransformer) -> bool:
    """Whether a fresh head may see the class token, the mean of the patches, or both."""
    config = model.config
    return config.class_token and not (config.distilled or config.fc_norm or config.pre_logits)


def poolings(model: VisionTransformer) -> dict[str, slice]:
    """The columns of `head_features` for each value of `ViTConfig.pool` that the model allows."""
    if not pooling_is_free(model):
        return {model.config.pool: slice(None)}
    width = model.config.embed_dim
    return {"token": slice(width), "avg": slice(width, None), "both": slice(None)}


def head_features(model: VisionTransformer, images: Tensor) -> Tensor:
    """What the model's head sees, for every pooling that it allows: (B, C, S, S) -> (B, D).

    If the pooling is free, the class token and the mean of the patches, D = 2 embed_dim. Of a
    distilled model both class tokens, one for each head.
    """
    tokens = model.forward_features(images)
    if model.config.distilled:
        return tokens[:, :2].flatten(1)
    if pooling_is_free(model):
        return torch.cat([tokens[:, 0], tokens[:, model.config.prefix_tokens :].mean(dim=1)], dim=1)
    return model.pre_logits(model.fc_norm(model.pooled(tokens)))


def fingerprint(model: VisionTransformer, preprocessing: Preprocessing, policy: str) -> str:
    """SHA-256 of everything that a picture's features depend on, apart from the picture.

    Args:
        policy: the augmentation.
    """
    heads = ("head.", "head_dist.")
    free = ("num_classes", "head", "head_hidden", "drop_rate", "drop_path_rate")
    config = {
        name: value
        for name, value in model.config.to_dict().items()
        if name not in free and not (name == "pool" and pooling_is_free(model))
    }
    weights = {n: t for n, t in model.state_dict().items() if not n.startswith(heads)}
    return checksum([weights, config, preprocessing.to_dict(), policy])


class FeatureFiles:
    """Files of features in the folder of a run, which are also looked for in the folders beside it.

    Each holds the features of some pictures, their identities, and a checksum.
    """

    def __init__(self, run_folder: Path, key: str) -> None:
        self.folder = run_folder / "features"
        self.key = key

    def read(self, log: Callable[[str], None]) -> dict[str, np.ndarray]:
        """Features (D,) by picture identity, of all files with this key; damaged ones are named."""
        known: dict[str, np.ndarray] = {}
        runs = self.folder.parent.absolute().parent
        for path in sorted(runs.glob(f"*/features/{self.key[:16]}-*.safetensors")):
            try:
                identities, values = _read(path, self.key)
            except (OSError, ValueError, LookupError, TypeError, SafetensorError) as error:
                log(f"warning: {path}: not usable ({error}); these features are computed again")
                continue
            known |= zip(identities, values, strict=True)
        return known

    def write(self, identities: Sequence[str], values: np.ndarray) -> None:
        """Writes the features (N, D) of these pictures to a new file.

        Raises:
            JobFailed: the file cannot be written.
        """
        make_output_folder(self.folder)
        digest = _digest(values)
        metadata = {"key": self.key, "pictures": list(identities), "sha256": digest}
        packed = to_safetensors({"features": values}, {METADATA_KEY: json.dumps(metadata)})
        write_bytes(self.folder / f"{self.key[:16]}-{digest[:16]}.safetensors", packed)


def _read(path: Path, key: str) -> tuple[list[str], np.ndarray]:
    """The picture identities and features of a file.

    Raises:
        ValueError: other features than those of the key, or not those that were written.
    """
    with safetensors.safe_open(str(path), framework="numpy") as file:
        metadata = json.loads((file.metadata() or {})[METADATA_KEY])
        values = file.get_tensor("features")
    if metadata["key"] != key:
        raise ValueError("features of another model")
    if values.dtype != np.float32 or _digest(values) != metadata["sha256"]:
        raise ValueError("its contents have changed since it was written")
    pictures = metadata["pictures"]
    if values.ndim != 2 or len(pictures) != len(values):
        raise ValueError("its pictures and features do not match")
    return pictures, values


def _digest(values: np.ndarray) -> str:
    return hashlib.sha256(values.tobytes()).hexdigest()


@dataclass(frozen=True)
class Extractor:
    """Computes the features of pictures, or reads them if they are known.

    Attributes:
        model: on the device of `ranks`, not sharded.
        run_folder: for the files.
        workers: processes that read pictures.
        log: prints a line.
    """

    model: VisionTransformer
    preprocessing: Preprocessing
    run_folder: Path
    ranks: Ranks
    workers: int
    log: Callable[[str], None]

    def __call__(
        self, pictures: Pictures, policy: str = "none", view: int = 0, seed: int = 0
    ) -> Features:
        """The features of all readable pictures, in order; all ranks must call it.

        Each rank computes a share of them.

        Args:
            policy: augmentation, one of `kansformer.data.augment.POLICIES`.
            view, seed: decide the random numbers of the augmentation.
        """
        key = fingerprint(self.model, self.preprocessing, policy)
        identities = _identities(pictures)
        if policy == "none":
            dataset = PictureDataset(pictures, self.preprocessing, skip_broken=True)
        else:
            identities = [f"{name} {seed} {view} {i}" for i, name in enumerate(identities)]
            transform = make_augmentation(policy, self.preprocessing)
            at_least = least_side(policy, self.preprocessing)
            dataset = PictureDataset(pictures, transform, seed, True, at_least)
        files = FeatureFiles(self.run_folder, key)
        known = files.read(self.log)
        missing = [index for index, identity in enumerate(identities) if identity not in known]
        self.ranks.barrier()  # every rank has read the files before the first one adds to them
        computed: dict[str, np.ndarray] = {}
        for chunk in self._compute(dataset, missing[self.ranks.rank :: self.ranks.world], view):
            named = {identities[index]: values for index, values in chunk.items()}
            files.write(list(named), np.stack(list(named.values())))
            computed |= named
        for part in self.ranks.gather_objects(computed):
            known |= part
        rows = [index for index, identity in enumerate(identities) if identity in known]
        values = [known[identities[index]] for index in rows]
        return Features(np.stack(values) if values else np.empty((0, 0)), pictures.labels[rows])

    def _compute(
        self, dataset: PictureDataset, indices: Sequence[int], view: int
    ) -> Iterator[dict[int, np.ndarray]]:
        """Features (D,) by index, in chunks that are worth a file; unreadable pictures are left
        out. After an interrupt the last chunk is what was computed until then.
        """
        if not indices:
            return
        config = self.model.config
        batch = max(1, TOKENS_AT_ONCE // (config.prefix_tokens + config.grid_tokens))
        loader = DataLoader(
            dataset,
            min(batch, 256),
            sampler=[(view, index) for index in indices],
            num_workers=self.workers,
            worker_init_fn=ignore_pillow_warnings,
        )
        chunk: dict[int, np.ndarray] = {}
        began = saved = time.monotonic()
        start = 0
        bar = progress_bar(total=len(indices), title="features", shown=self.ranks.shows_bars)
        try:
            for images, labels in loader:
                values = self._forward(images)
                for offset in (labels != NO_LABEL).nonzero().flatten().tolist():
                    chunk[indices[start + offset]] = values[offset]
                start += len(labels)
                bar.update(len(labels))
                if start == 2 * len(labels):  # the first batch may have compiled kernels
                    left = (len(indices) - start) * (time.monotonic() - began) / start
                    if left > WORTH_A_LINE:
                        self.log(f"head    features of {len(indices):,} pictures to compute:"
                                 f" about {duration(left)}")  # fmt: skip
                if chunk and time.monotonic() - saved > SAVE_SECONDS:
                    yield chunk
                    chunk, saved = {}, time.monotonic()
        except KeyboardInterrupt:
            if chunk:
                yield chunk
            raise
        finally:
            bar.close()
        if chunk:
            yield chunk

    @torch.no_grad()
    @compile_without_gradients()
    def _forward(self, images: Tensor) -> np.ndarray:
        self.model.eval()
        return head_features(self.model, images.to(self.ranks.device)).float().cpu().numpy()


def _identities(pictures: Pictures) -> list[str]:
    """A text for each picture that changes with its content: of files by inode, size and time."""
    if isinstance(pictures.items, np.ndarray):
        return [_digest(pixels) for pixels in pictures.items]
    return [file_key(path) or path for path in pictures.items]
