"""The basis against scipy and the textbook's recursion in float64; fits against numpy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import BSpline

from models import splines

ORDERS = range(6)


def knots_of(kind: str, grid_size: int, order: int, seed: int = 0) -> torch.Tensor:
    """(M,) float64."""
    if kind == "uniform":
        return splines.uniform_knots(-1.3, 2.1, grid_size, order)
    gaps = np.random.default_rng(seed).uniform(0.05, 1.0, grid_size + 2 * order)
    return torch.from_numpy(np.concatenate([[-2.0], -2.0 + np.cumsum(gaps)]))


def scipy_basis(x: np.ndarray, knots: np.ndarray, order: int) -> np.ndarray:
    """(N, M - order - 1), each function on its own support; half-open intervals, last closed."""
    columns = []
    for j in range(len(knots) - order - 1):
        element = BSpline.basis_element(knots[j : j + order + 2], extrapolate=False)
        column = np.nan_to_num(element(x))
        if order == 0 and j < len(knots) - 2:
            column[x == knots[j + 1]] = 0
        columns.append(column)
    return np.stack(columns, axis=1)


def places(knots: torch.Tensor) -> torch.Tensor:
    """Points inside, at every knot, and outside."""
    low, high = float(knots[0]), float(knots[-1])
    even = torch.linspace(low - 1, high + 1, 400, dtype=torch.float64)
    far = torch.tensor([-1e6, 1e6], dtype=torch.float64)
    return torch.cat([even, knots.double(), far])


@pytest.mark.parametrize("kind", ["uniform", "uneven"])
@pytest.mark.parametrize("grid_size", [1, 2, 3, 5, 8, 20, 50, 100])
@pytest.mark.parametrize("order", ORDERS)
def test_basis_is_scipys(order: int, grid_size: int, kind: str) -> None:
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-6)):
        knots = knots_of(kind, grid_size, order).to(dtype)
        x = places(knots).to(dtype)
        ours = splines.b_spline_basis(x[:, None], knots[None], order)[:, 0]
        assert ours.dtype == dtype
        expected = scipy_basis(x.double().numpy(), knots.double().numpy(), order)
        np.testing.assert_allclose(ours.numpy(), expected, rtol=0, atol=tolerance)


@given(
    order=st.integers(0, 5),
    grid_size=st.integers(1, 30),
    seed=st.integers(0, 10**6),
    share=st.floats(0, 1),
)
@settings(max_examples=100, deadline=None)
def test_basis_sums_to_one_in_the_grid_and_is_never_negative(
    order: int, grid_size: int, seed: int, share: float
) -> None:
    knots = knots_of("uneven", grid_size, order, seed)
    grid = knots[order : len(knots) - order]
    x = torch.cat([grid, grid[:1] + share * (grid[-1:] - grid[:1])])
    basis = splines.b_spline_basis(x[:, None], knots[None], order)
    assert (basis >= 0).all()
    torch.testing.assert_close(basis.sum(-1), torch.ones(len(x), 1, dtype=torch.float64))


def test_repeated_end_knots_are_scipys_clamped_splines() -> None:
    knots = torch.tensor([0.0, 0, 0, 0, 1, 2.5, 3, 3, 3, 3], dtype=torch.float64)
    x = torch.linspace(0, 3, 61, dtype=torch.float64)
    ours = splines.b_spline_basis(x[:, None], knots[None], 3)[:, 0]
    expected = BSpline.design_matrix(x.numpy(), knots.numpy(), 3).toarray()
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("order", ORDERS)
def test_basis_has_the_right_derivative(order: int) -> None:
    knots = knots_of("uneven", 5, order)[None]
    x = torch.linspace(-3, float(knots[0, -1]) + 1, 37, dtype=torch.float64)[:, None]
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: splines.b_spline_basis(x, knots, order), x)


def test_far_outside_values_and_gradients_are_zero() -> None:
    knots = splines.uniform_knots(-1, 1, 5, 3)[None]
    x = torch.tensor([[-torch.inf], [torch.inf], [1e30]], dtype=torch.float64, requires_grad=True)
    basis = splines.b_spline_basis(x, knots, 3)
    basis.sum().backward()
    assert (basis == 0).all()
    assert (x.grad == 0).all()


@pytest.mark.parametrize("shape", [(0, 4), (4,), (2, 3, 4), (2, 1, 5, 4)])
def test_leading_dimensions(shape: tuple[int, ...]) -> None:
    knots = splines.uniform_knots(-1, 1, 5, 2).repeat(4, 1)
    x = torch.randn(shape, dtype=torch.float64)
    basis = splines.b_spline_basis(x, knots, 2)
    assert basis.shape == (*shape, 7)
    flat = splines.b_spline_basis(x.reshape(-1, 4), knots, 2)
    torch.testing.assert_close(basis.reshape(-1, 4, 7), flat)
    turned = x.transpose(0, -1).contiguous().transpose(0, -1)  # the same values, other strides
    torch.testing.assert_close(splines.b_spline_basis(turned, knots, 2), basis)


@pytest.mark.parametrize("order", ORDERS)
def test_refitting_to_a_nested_grid_keeps_the_function_everywhere_inside(order: int) -> None:
    old = splines.uniform_knots(-1, 1, 4, order).repeat(2, 1)
    new = splines.uniform_knots(-1, 1, 12, order).repeat(2, 1)
    coefficients = torch.randn(2, 4 + order, 1, dtype=torch.float64)
    samples = torch.zeros(1, 2, dtype=torch.float64)  # says next to nothing
    moved = splines.refit_matrix(old, new, order, samples) @ coefficients
    x = torch.linspace(-1, 1, 201, dtype=torch.float64)[:, None].expand(-1, 2)
    before = torch.einsum("nij,ijo->nio", splines.b_spline_basis(x, old, order), coefficients)
    after = torch.einsum("nij,ijo->nio", splines.b_spline_basis(x, new, order), moved)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_even_knots_are_told_from_uneven_ones(dtype: torch.dtype) -> None:
    rows = [splines.uniform_knots(*ends, 7, 3) for ends in ((-3, 3), (0, 0.1), (2, 6.5))]
    knots = torch.stack(rows).to(dtype)
    found = splines.uniform_steps(knots)
    assert found is not None
    step = torch.tensor([6 / 7, 0.1 / 7, 4.5 / 7], dtype=dtype)
    torch.testing.assert_close(found, torch.stack([step, 1 / step]), rtol=1e-5, atol=0)
    far = splines.uniform_knots(1000, 1001.3, 7, 3)[None].float()
    assert splines.uniform_steps(far) is None, "rounded to a ten-thousandth of the step"
    knots[1, 4] += 1e-4
    assert splines.uniform_steps(knots) is None, "one of them is not uniform"
    assert splines.uniform_steps(torch.ones(2, 5)) is None, "they have no distance"


def test_fit_is_numpys_least_squares() -> None:
    knots = splines.uniform_knots(-1, 1, 5, 3).repeat(2, 1)
    x = torch.rand(50, 2, dtype=torch.float64) * 2 - 1
    y = torch.randn(50, 2, 3, dtype=torch.float64)
    ours = splines.fit_coefficients(x, y, knots, 3)
    for feature in range(2):
        a = scipy_basis(x[:, feature].numpy(), knots[feature].numpy(), 3)
        expected = np.linalg.lstsq(a, y[:, feature].numpy(), rcond=None)[0]
        np.testing.assert_allclose(ours[:, feature].T.numpy(), expected, atol=1e-9)
