"""The formula that a network computes, as sympy expressions."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from kansformer.curve_fitting.expressions import curve_expression, factor_out_scale
from kansformer.symbolic.symbolic_kan import SymbolicKAN
from kansformer.symbolic.symbolic_layer import SymbolicLayer

if TYPE_CHECKING:
    import sympy


def symbolic_formula(model: nn.Module, names: Sequence[str] | None = None) -> "list[sympy.Expr]":
    """The formula of each output, with all digits of its numbers; `ex_round` rounds them.

    An edge that is still a spline becomes an undefined function phi_l_i_o, after its layer, source
    and target. Scales and shifts are written where they read best, see `curve_expression`.

    Args:
        model: a `KAN` or `SymbolicKAN`.
        names: of the inputs; default: those of the model.

    Raises:
        ValueError: the number of names is not the number of inputs.
    """
    import sympy

    network = model if isinstance(model, SymbolicKAN) else SymbolicKAN.of(model)
    names = network.names if names is None else list(names)
    if len(names) != len(network.names):
        raise ValueError(f"{len(network.names)} names are needed, not {len(names)}")
    nodes: list[Any] = [sympy.Symbol(names[i]) for i in network.inputs.tolist()]
    for number, layer in enumerate(network.layers):
        sums = [_sum(layer, number, o, nodes) for o in range(layer.out_features)]
        nodes = sums[: layer.plain_sums]
        factors = sums[layer.plain_sums :]
        for first, second in zip(factors[::2], factors[1::2], strict=True):
            (k, first), (m, second) = factor_out_scale(first), factor_out_scale(second)
            nodes.append(k * m * first * second)
    return nodes


def _sum(layer: SymbolicLayer, number: int, target: int, nodes: list[Any]) -> Any:
    import sympy

    total = sympy.Float(float(layer.bias[target]))
    for i, node in enumerate(nodes):
        if not layer.mask[target, i]:
            continue
        name = layer.names[target][i]
        if name is None:
            total += sympy.Function(f"phi_{number}_{i}_{target}")(node)
        else:
            total += curve_expression(name, layer.affine[target, i].tolist(), node)
    return total
