"""The data pipeline, from pictures on disk to batches."""

from kansformer.data.dataset import (
    PictureDataset,
    TrainingSampler,
    make_loader,
    training_loader,
)
from kansformer.data.images import open_image
from kansformer.data.preprocessing import Preprocessing
from kansformer.data.sources import PictureData, Pictures, load_data
from kansformer.data.usable import usable

__all__ = [
    "PictureData",
    "PictureDataset",
    "Pictures",
    "Preprocessing",
    "TrainingSampler",
    "load_data",
    "make_loader",
    "open_image",
    "training_loader",
    "usable",
]
