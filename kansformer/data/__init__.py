"""Pictures on disk to batches."""

from kansformer.data.dataset import PictureDataset, make_loader
from kansformer.data.images import open_image
from kansformer.data.preprocessing import Preprocessing
from kansformer.data.sources import PictureData, Pictures, load_data
from kansformer.data.usable import usable

__all__ = [
    "PictureData",
    "PictureDataset",
    "Pictures",
    "Preprocessing",
    "load_data",
    "make_loader",
    "open_image",
    "usable",
]
