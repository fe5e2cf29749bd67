"""Private parts of torch do what the engine needs of them; a failure names the one that changed."""

import ast
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from models.engine import torch_private
from tests.conftest import ROOT

ALLOWED = ROOT / "models" / "engine" / "torch_private.py"


def test_transforms_are_seen() -> None:
    seen = []
    assert not torch_private.are_functorch_transforms_active()
    torch.func.vmap(lambda x: (seen.append(torch_private.are_functorch_transforms_active()), x)[1])(
        torch.zeros(2)
    )
    assert seen == [True]


def test_dispatch_modes_are_counted() -> None:
    before = torch_private.dispatch_stack_length()
    with FlopCounterMode(display=False):
        assert torch_private.dispatch_stack_length() == before + 1


def test_forward_mode_is_seen() -> None:
    assert torch_private.forward_ad._current_level < 0
    with forward_ad.dual_level():
        assert torch_private.forward_ad._current_level >= 0


def test_below_autograd_nothing_is_recorded() -> None:
    x = torch.ones(2, requires_grad=True)
    with torch_private.below_autograd():
        assert not (2 * x).requires_grad
    assert (2 * x).requires_grad


def test_onednns_product() -> None:
    x, weight, bias = torch.randn(5, 3), torch.randn(4, 3), torch.randn(4)
    if torch_private.onednn_linear is not None:
        y = torch_private.onednn_linear(x, weight, bias, "none", [], "")
        torch.testing.assert_close(y, F.linear(x, weight, bias))


def private_names(path: Path) -> set[str]:
    """Attributes of torch's modules that begin with an underscore, as they are written."""
    nodes = ast.walk(ast.parse(path.read_text()))
    texts = {ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute)}
    return {text for text in texts if text.startswith("torch.") and "._" in text}


def test_models_use_no_other_private_name() -> None:
    assert private_names(ALLOWED)
    for path in (ROOT / "models").rglob("*.py"):
        assert path == ALLOWED or not private_names(path), path
