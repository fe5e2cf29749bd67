"""Vision KANsformer: training, prediction and inspection of ViTs with KAN feed-forward blocks.

The names in `__all__` are imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kansformer.checkpoint import load_model
    from kansformer.infer import Predictor
    from kansformer.pretrained import load_pretrained
    from models.kan import KAN, GroupKANLinear, KANLinear
    from models.vit_model import create_model

__version__ = "0.1.0"
__all__ = [
    "KAN",
    "GroupKANLinear",
    "KANLinear",
    "Predictor",
    "__version__",
    "create_model",
    "load_model",
    "load_pretrained",
]

_MODULES = {
    "KAN": "kansformer.models.kan",
    "GroupKANLinear": "kansformer.models.kan",
    "KANLinear": "kansformer.models.kan",
    "Predictor": "kansformer.infer",
    "create_model": "kansformer.models.vit_model",
    "load_model": "kansformer.checkpoint",
    "load_pretrained": "kansformer.pretrained",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
