"""The library of functions f for formulas a·f(b·x + c) + d.

Since b and c stretch and shift the argument, one function of each shape is enough: sin covers cos,
and exp covers all bases. Outside its domain a function continues as a constant, so that no network
ever computes a NaN. Fits that would rely on this continuation are rejected.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Function:
    """A function of one variable.

    Attributes:
        evaluate: elementwise, finite everywhere.
        symbol: name of the function in sympy, or the exponent of a power.
        complexity: of functions that fit equally well, the one with the lowest complexity is
            chosen. Functions with more parameters to search over are rated more complex, since they
            can bend to more curves.
        search: the nonlinear parameters to search over: "shift" (c only; scaling by b is absorbed
            into a and d, as for powers), "rate" (b only; c is absorbed, as for exp), "phase" (b,
            and c over one period), "both" (b and c), or "none" for a straight line.
        low, high: bounds of the domain. That of negative powers also excludes zero.
    """

    evaluate: Callable[[Tensor], Tensor]
    symbol: str | int
    complexity: int
    search: str
    low: float = -math.inf
    high: float = math.inf

    def covers(self, z: Tensor) -> Tensor:
        """Whether each z lies in the domain, where `evaluate` needs no continuation."""
        inside = (z > self.low) & (z < self.high)
        if isinstance(self.symbol, int) and self.symbol < 0:
            inside &= z.abs() > POLE
        return inside

    def in_sympy(self, z: Any) -> Any:
        """The function applied to a sympy expression."""
        import sympy

        if self.symbol == "zero":
            return sympy.Integer(0)
        if self.symbol == "gaussian":
            return sympy.exp(-(z**2))
        if self.symbol == "lorentzian":
            return 1 / (1 + z**2)
        return z**self.symbol if isinstance(self.symbol, int) else getattr(sympy, self.symbol)(z)


POLE = 1e-8  # negative powers are constant closer to zero than this
TINY = 1e-14  # smallest argument of log and sqrt
LARGE = 300.0  # largest argument of exp


def _off_pole(z: Tensor) -> Tensor:
    return torch.where(z.abs() < POLE, torch.where(z < 0, -POLE, POLE), z)


FUNCTIONS: dict[str, Function] = {
    "0": Function(lambda z: 0 * z, "zero", 0, "none"),
    "x": Function(lambda z: z, 1, 1, "none"),
    "x^2": Function(torch.square, 2, 2, "shift"),
    "x^3": Function(lambda z: z**3, 3, 3, "shift"),
    "x^4": Function(lambda z: z**4, 4, 4, "shift"),
    "x^5": Function(lambda z: z**5, 5, 5, "shift"),
    "1/x": Function(lambda z: 1 / _off_pole(z), -1, 3, "shift"),
    "1/x^2": Function(lambda z: 1 / _off_pole(z).square(), -2, 4, "shift"),
    "sqrt": Function(lambda z: z.clamp_min(TINY).sqrt(), "sqrt", 3, "shift", low=TINY),
    "exp": Function(lambda z: z.clamp_max(LARGE).exp(), "exp", 2, "rate", high=LARGE),
    "log": Function(lambda z: z.clamp_min(TINY).log(), "log", 3, "shift", low=TINY),
    "abs": Function(torch.abs, "Abs", 3, "shift"),
    "sin": Function(torch.sin, "sin", 3, "phase"),
    "cos": Function(torch.cos, "cos", 3, "phase"),
    "tan": Function(torch.tan, "tan", 4, "both", low=-math.pi / 2, high=math.pi / 2),
    "tanh": Function(torch.tanh, "tanh", 3, "both"),
    "arcsin": Function(
        lambda z: z.clamp(TINY - 1, 1 - TINY).asin(), "asin", 4, "both", low=-1, high=1
    ),
    "arctan": Function(torch.atan, "atan", 4, "both"),
    "gaussian": Function(lambda z: (-z.square()).exp(), "gaussian", 4, "both"),
    "lorentzian": Function(lambda z: 1 / (1 + z.square()), "lorentzian", 4, "both"),
}

# The default candidates. Functions that others cover are left out: cos is sin with another phase.
# "0" stands for an edge that can be removed, which is a candidate of `auto_symbolic` in any case.
LIBRARY = tuple(name for name in FUNCTIONS if name not in ("0", "x^5", "cos", "tan", "arcsin"))


def function_named(name: str) -> Function:
    """Looks up a function.

    Raises:
        ValueError: unknown name; the message lists the known ones.
    """
    if name not in FUNCTIONS:
        raise ValueError(f"no function is called {name!r}; there are {', '.join(FUNCTIONS)}")
    return FUNCTIONS[name]


def value_and_slopes(name: str, x: Tensor, affine: Tensor) -> tuple[Tensor, Tensor]:
    """a·f(b·x + c) + d and its derivatives with respect to a, b, c and d.

    Shapes: x (..., N), affine (..., 4) -> (..., N) and (..., N, 4).
    """
    a, b, c, d = (p.unsqueeze(-1) for p in affine.detach().unbind(-1))
    x = x.detach()
    with torch.enable_grad():
        z = (b * x + c).requires_grad_()
        f = FUNCTIONS[name].evaluate(z)
        (slope,) = torch.autograd.grad(f.sum(), z)
    f = f.detach()
    slopes = torch.stack([f, a * slope * x, a * slope, torch.ones_like(f)], dim=-1)
    return a * f + d, slopes
