"""Private parts of torch do what the engine needs of them; a failure names the one that changed."""

import ast
import re
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


# Private names outside torch_private.py, none of which has a public alternative.
OTHERS = {
    "models/kan_grid.py": {"optimizer._numel_cache"},  # LBFGS counts its parameters once
    "kansformer/data/sources.py": {"part._image_files", "part._labels"},  # of Flowers102
}


def private_names(path: Path) -> set[str]:
    """Private attributes of other objects than self, as they are written, without our own."""
    tree = ast.parse(path.read_text())
    defined = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)} | {"_flat"}
    return {
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and re.match("_[a-zA-Z]", node.attr)
        and node.attr not in defined
        and ast.unparse(node.value) not in ("self", "cls", "os", "torch")
    }


def test_private_names_are_used_nowhere_else() -> None:
    for folder in ("models", "kansformer"):
        for path in (ROOT / folder).rglob("*.py"):
            name = path.relative_to(ROOT).as_posix()
            if path != ALLOWED and name != "models/engine/operators.py":  # which imports them
                assert private_names(path) == OTHERS.get(name, set()), name
