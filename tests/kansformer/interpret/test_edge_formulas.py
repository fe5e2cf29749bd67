"""Formulas of a ViT's learned functions."""

import pytest
import torch

from kansformer.interpret.edge_formulas import project_functions, read_functions
from kansformer.interpret.edges import edge_function, edge_layer, group_functions
from models.kan import GroupKANLinear, KANLinear
from models.splines import fit_coefficients
from tests.kansformer.interpret.test_edges import vit

X = torch.randn(1500, 16, generator=torch.Generator().manual_seed(2)).clamp(-2.9, 2.9)


def test_a_planted_function_is_recovered() -> None:
    model = vit(kan_hidden=6, grid_size=20)
    layer = edge_layer(model, 0, "fc1")
    assert isinstance(layer, KANLinear)
    with torch.no_grad():
        layer.base_weight[2, 5] = 0
        target = 0.8 * torch.sin(2 * X[:, 5] + 0.5)
        layer.spline_scaler[2, 5] = 1
        layer.spline_weight[2, 5] = fit_coefficients(
            X[:, 5:6], target[:, None, None], layer.grid[5:6], 3
        )[0, 0].float()
        layer.spline_weight[3, 5] = 0
        layer.base_weight[3, 5] = 0.7
    sine, base = read_functions(model, 0, "fc1", [(2, 5), (3, 5)], X)
    assert (sine.name, base.name) == ("sin", "silu")
    assert sine.r2 > 0.9999
    assert str(base) == "0.7*silu(x)"
    torch.testing.assert_close(sine.values(X[:, 5]), target, rtol=0, atol=1e-2)


@pytest.mark.parametrize("kind", [{"kan_hidden": 6}, {"ffn": "group-kan", "groups": 4}])
def test_a_projected_function_is_closer_to_its_formula(kind: dict[str, object]) -> None:
    model = vit(grid_size=8, **kind)
    group = "ffn" in kind
    function = (None, 1) if group else (2, 5)
    (formula,) = read_functions(model, 0, "fc1", [function], X)
    projected = project_functions(model, [formula], {(0, "fc1"): X})

    def error(of: object) -> float:
        curve = (
            group_functions(of, 0, "fc1", X)[1]  # type: ignore[arg-type]
            if group
            else edge_function(of, 0, "fc1", 2, 5, X)  # type: ignore[arg-type]
        )
        inside = curve.x.abs() < 2
        return float((curve.y - formula.values(curve.x))[inside].square().mean())

    assert error(projected) < 0.2 * error(model)
    before, after = (edge_layer(vision, 0, "fc1") for vision in (model, projected))
    assert isinstance(before, KANLinear | GroupKANLinear)
    changed = (before.spline_weight != after.spline_weight).any(dim=-1)  # type: ignore[union-attr]
    assert int(changed.sum()) == 1  # the others are unchanged


def test_an_mlp_has_no_formulas() -> None:
    with pytest.raises(ValueError, match="no learned functions"):
        read_functions(vit(ffn="mlp"), 0, "fc1", [(0, 0)], X)
