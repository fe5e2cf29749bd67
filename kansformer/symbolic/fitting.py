"""Fitting a network to data."""

import copy
import math
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress

import torch
from torch import Tensor, nn

from kansformer.curve_fitting.least_squares import levenberg_marquardt
from kansformer.progress import progress_bar
from kansformer.symbolic.activations import ActiveParameters, LayerTrace, trace
from kansformer.symbolic.dataset import Dataset
from kansformer.symbolic.symbolic_layer import SymbolicKAN, SymbolicLayer
from models import kan_grid
from models.kan import KANLinear
from models.kan_weights import check_writable
from models.plain import plain

OPTIMISERS = ("LM", "LBFGS", "Adam")
LBFGS_ITERATIONS = 20  # in a step, as in pykan
GRID_STEPS, GRID_EVERY = 50, 10  # the first 50 steps have an update of the grids every 10

History = dict[str, list[float]]
Metric = Callable[[SymbolicKAN], float]


class Objective:
    """Mean squared error plus a regulariser, of a network on samples.

    Liu et al. (2024), equations 2.17 to 2.20; an edge's size is the standard deviation of its
    output over that of its input, as in pykan 0.2.8.
    """

    def __init__(
        self,
        model: SymbolicKAN,
        x: Tensor,
        y: Tensor,
        lamb: float = 0.0,
        lamb_l1: float = 1.0,
        lamb_entropy: float = 2.0,
        lamb_coef: float = 0.0,
        lamb_coefdiff: float = 0.0,
    ) -> None:
        self.model = model
        self.x, self.y = x, y
        self.lamb = lamb
        self.factors = lamb_l1, lamb_entropy, lamb_coef, lamb_coefdiff
        self.first_features: Tensor | None = None

    def run(self) -> tuple[Tensor, list[LayerTrace]]:
        """One pass; the features of the samples are computed once only."""
        y, layers = trace(self.model, self.x, self.first_features)
        self.first_features = layers[0].features
        return y, layers

    def regulariser(self, sizes: list[Tensor]) -> Tensor:
        """Of the layers' edge sizes, before the factor lamb; a scalar."""
        l1, entropy, coef, coefdiff = self.factors
        total = self.x.new_zeros(())
        for layer, size in zip(self.model.layers, sizes, strict=True):
            total = total + l1 * size.sum() + entropy * (_entropy(size, 0) + _entropy(size, 1))
            if coef or coefdiff:
                weight = layer.kan.spline_weight[layer.numeric()]
                if len(weight):
                    total = total + coef * weight.abs().mean(dim=1).sum()
                    total = total + coefdiff * weight.diff(dim=1).abs().mean(dim=1).sum()
        return total

    def loss(self) -> tuple[Tensor, Tensor]:
        """Total and regulariser, scalars."""
        y, layers = self.run()
        error = (y - self.y).square().mean()
        if not self.lamb:
            return error, torch.zeros_like(error)
        penalty = self.regulariser([edge_sizes(part) for part in layers])
        return error + self.lamb * penalty, penalty

    def quadratic(self, active: ActiveParameters) -> tuple[Tensor, Tensor]:
        """Gradient (P,) of the loss, and Gauss and Newton's curvature (P, P).

        The regulariser's curvature is that of a parabola that touches it from above: for a factor w
        on an edge's size s it is w·s ≤ w·(s² + s0²) / (2·s0), s0 being the present size.
        """
        y, layers = self.run()
        jacobian = active.jacobian(y, layers).flatten(0, 1)  # (N · outputs, P)
        residual = (y.detach() - self.y).flatten()
        gradient = 2 * (residual @ jacobian) / len(residual)
        curvature = 2 * (jacobian.T @ jacobian) / len(residual)
        if self.lamb:
            sizes = [edge_sizes(part) for part in layers]
            penalty = self.lamb * self.regulariser(sizes)
            rates = torch.autograd.grad(penalty, sizes, retain_graph=True)
            gradient = gradient + active.gradient(penalty)
            self._bend(curvature, active, layers, sizes, rates)
        return gradient, curvature

    def _bend(
        self,
        curvature: Tensor,
        active: ActiveParameters,
        layers: list[LayerTrace],
        sizes: list[Tensor],
        rates: tuple[Tensor, ...],
    ) -> None:
        start = 0
        for part, (numeric, symbolic), size, rate in zip(
            layers, active.places, sizes, rates, strict=True
        ):
            if part.features is not None:
                values = part.features.detach()
                scale = _spread(part.x.detach()) + 0.1
                centred = ((values - values.mean(dim=0)) / scale[:, None]).transpose(0, 1)
                covariance = centred.mT @ centred / max(len(values) - 1, 1)  # (in, n + 1, n + 1)
                width = covariance.shape[-1]
                factor = (rate.clamp_min(0) / size.clamp_min(1e-8)).detach()
                for o, i in zip(*(t.tolist() for t in numeric), strict=True):
                    block = slice(start, start + width)
                    curvature[block, block] += factor[o, i] * covariance[i]
                    start += width
            start += 4 * len(symbolic[0])


def edge_sizes(part: LayerTrace) -> Tensor:
    """Standard deviation of each edge's output over that of its input, (out, in)."""
    return part.deviations() / (_spread(part.x) + 0.1)


def _spread(x: Tensor) -> Tensor:
    """Standard deviation of each column of (N, in), 0 for a single sample."""
    return x.std(dim=0) if len(x) > 1 else torch.zeros_like(x[0])


def _entropy(size: Tensor, dim: int) -> Tensor:
    share = size / (size.sum(dim=dim, keepdim=True) + 1)
    return -(share * (share + 1e-4).log2()).sum(dim=dim).mean()


def rmse(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Root mean square of the error over samples and outputs, computed where the model is."""
    like = next(model.parameters())
    with torch.no_grad():
        return float((model(x.to(like)) - y.to(like)).square().mean().sqrt())


def move_grids(
    model: SymbolicKAN, x: Tensor, optimizer: torch.optim.Optimizer | None = None
) -> None:
    """Spans every layer's grids evenly over what reaches it; the functions stay as near as can be.

    A feature with too few distinct values keeps the grid it has.
    """
    check_writable(model)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x = model.select(x)
        for layer in model.layers:
            with suppress(ValueError):
                kan_grid.update_grid(layer.kan, x, grid_eps=1.0, optimizer=optimizer)
            x = layer(x)


def fit(
    model: nn.Module,
    dataset: Dataset,
    opt: str = "LM",
    steps: int = 50,
    *,
    lamb: float = 0.0,
    lamb_l1: float = 1.0,
    lamb_entropy: float = 2.0,
    lamb_coef: float = 0.0,
    lamb_coefdiff: float = 0.0,
    update_grid: bool = True,
    batch: int | None = None,
    lr: float | None = None,
    metrics: Mapping[str, Metric] | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> History:
    """Trains a network in place; only the training half of the dataset decides anything.

    The loss is the mean squared error plus `lamb` times the regulariser: `lamb_l1` · L1 and
    `lamb_entropy` · entropy of the edges' sizes, `lamb_coef` · mean absolute coefficient and
    `lamb_coefdiff` · mean absolute difference of neighbouring ones.

    Args:
        model: a `SymbolicKAN`, or a `KAN` or layer of one, whose scalers are multiplied into its
            coefficients.
        opt: "LM", Levenberg and Marquardt's method, the fastest for small networks; "LBFGS" with
            20 iterations a step; "Adam".
        steps: most steps. LM ends earlier if a step changes nothing any more, the others before a
            step that makes the loss infinite, which is taken back.
        update_grid: spans the grids over the samples, every 10 of the first 50 steps.
        batch: samples drawn for each step; all of them if None. Not for LM.
        lr: learning rate, 1 for LBFGS and 1e-2 for Adam unless given. Not for LM.
        metrics: called with the network, as a `SymbolicKAN`, after every step.
        seed: of the batches, from an own generator.
        progress: shows a bar with both errors and the regulariser; None shows it on a terminal.

    Returns:
        After every step: "train_rmse", "test_rmse", "reg" and the metrics by their names.

    Raises:
        ValueError: an unknown optimiser, settings that do not fit it, data that is not finite or of
            other shapes than the network's, or weights that cannot be written to.
    """
    if opt not in OPTIMISERS:
        raise ValueError(f"opt must be one of {', '.join(OPTIMISERS)}, not {opt!r}")
    if opt == "LM" and (batch is not None or lr is not None):
        raise ValueError("LM takes all samples at once and no learning rate")
    steps, batch, seed = plain((steps, batch, seed))
    if steps < 0 or (batch is not None and batch < 1):
        raise ValueError(f"steps and batch must be positive, not {steps} and {batch}")
    lr, lamb, lamb_l1, lamb_entropy = plain((lr, lamb, lamb_l1, lamb_entropy))
    lamb_coef, lamb_coefdiff = plain((lamb_coef, lamb_coefdiff))
    if lr is not None and not 0 < lr < math.inf:
        raise ValueError(f"lr must be above 0, not {lr}")
    factors = lamb, lamb_l1, lamb_entropy, lamb_coef, lamb_coefdiff
    if not all(0 <= factor < math.inf for factor in factors):
        raise ValueError(f"lamb and the other factors must be numbers of at least 0, not {factors}")
    check_writable(model)
    own = model if isinstance(model, SymbolicKAN) else SymbolicKAN.of(model)
    x, y = checked(own, dataset["train_input"], dataset["train_label"])
    test_x, test_y = checked(own, dataset["test_input"], dataset["test_label"])
    objective = Objective(own, x, y, *factors)
    history: History = {name: [] for name in ("train_rmse", "test_rmse", "reg", *(metrics or {}))}

    with progress_bar(total=steps, shown=progress) as bar:

        def record() -> None:
            with torch.no_grad():
                _, layers = objective.run()
                penalty = objective.regulariser([edge_sizes(part) for part in layers])
            shown = {
                "train_rmse": rmse(own, x, y),
                "test_rmse": rmse(own, test_x, test_y),
                "reg": float(penalty),
            }
            shown |= {name: float(metric(own)) for name, metric in (metrics or {}).items()}
            for name, value in shown.items():
                history[name].append(value)
            bar.set_postfix({name: f"{value:.2e}" for name, value in shown.items()})
            bar.update()

        if opt == "LM":
            _fit_lm(objective, steps, update_grid, record)
        else:
            rate = lr or {"LBFGS": 1.0, "Adam": 1e-2}[opt]
            _fit_torch(objective, opt, steps, rate, update_grid, batch, seed, record)
        if not history["reg"]:  # nothing to fit
            record()
    if not isinstance(model, SymbolicKAN):
        write_back(own, model)
    return history


def _fit_lm(
    objective: Objective, steps: int, update_grid: bool, record: Callable[[], None]
) -> None:
    done = 0
    while done < steps:
        count = steps - done
        if update_grid and done < GRID_STEPS:
            move_grids(objective.model, objective.x)
            objective.first_features = None
            count = min(count, GRID_EVERY)
        solve(objective, count, record)
        done += count


def solve(
    objective: Objective, steps: int, record: Callable[[], None] | None = None, enough: float = 0.0
) -> float:
    """Minimises an objective in place by Levenberg and Marquardt's method; returns the loss.

    Args:
        steps: most steps.
        record: called after every step.
        enough: a loss at which to stop.
    """
    active = ActiveParameters(objective.model)
    if active.count() == 0:
        return float(objective.loss()[0].detach())

    def loss(theta: Tensor) -> Tensor:
        active.write(theta[0])
        with torch.no_grad():
            return objective.loss()[0][None]

    def quadratic(theta: Tensor) -> tuple[Tensor, Tensor]:
        active.write(theta[0])
        gradient, curvature = objective.quadratic(active)
        return gradient[None], curvature[None]

    def after(step: int, theta: Tensor, losses: Tensor) -> bool:
        if record is not None:
            active.write(theta[0])
            record()
        return bool(losses[0] <= enough)

    theta, losses = levenberg_marquardt(loss, quadratic, active.read()[None], steps, after)
    active.write(theta[0])
    return float(losses[0])


def _fit_torch(
    objective: Objective,
    opt: str,
    steps: int,
    lr: float,
    update_grid: bool,
    batch: int | None,
    seed: int,
    record: Callable[[], None],
) -> None:
    model, x, y = objective.model, objective.x, objective.y
    optimizer: torch.optim.Optimizer
    if opt == "LBFGS":
        optimizer = torch.optim.LBFGS(
            model.parameters(), lr, LBFGS_ITERATIONS, history_size=10, tolerance_grad=1e-32,
            tolerance_change=1e-32, line_search_fn="strong_wolfe",
        )  # fmt: skip
    else:
        optimizer = torch.optim.Adam(model.parameters(), lr)
    generator = torch.Generator().manual_seed(seed)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss, _ = objective.loss()
        if loss.requires_grad:
            loss.backward()
        return loss

    for step in range(steps):
        if update_grid and step < GRID_STEPS and step % GRID_EVERY == 0:
            move_grids(model, x, optimizer)
            objective.first_features = None
        if batch is not None and batch < len(x):
            rows = torch.randperm(len(x), generator=generator)[:batch].to(x.device)
            objective.x, objective.y, objective.first_features = x[rows], y[rows], None
        before = copy.deepcopy(model.state_dict())
        optimizer.step(closure)
        if not objective.loss()[0].isfinite():
            model.load_state_dict(before)  # a step too far; what there was is kept
            break
        record()


def checked(model: SymbolicKAN, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Samples and labels in the network's type, or a ValueError that says what is wrong."""
    last = model.layers[-1]
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or len(x) == 0 or y.shape[1] != last.nodes:
        raise ValueError(
            f"inputs (N, {len(model.names)}) and labels (N, {last.nodes}) are needed, not"
            f" {tuple(x.shape)} and {tuple(y.shape)}"
        )
    if not (x.isfinite().all() and y.isfinite().all()):
        raise ValueError("inputs and labels must be finite")
    return x.to(last.affine), y.to(last.affine)


def write_back(own: SymbolicKAN, model: nn.Module) -> None:
    """Puts fitted splines into the KAN or layer that they came from, with scalers of 1."""
    targets = [module for module in model.modules() if isinstance(module, KANLinear)]
    with torch.no_grad():
        for source, target in zip(own.layers, targets, strict=True):
            assert isinstance(source, SymbolicLayer)
            target.grid.copy_(source.kan.grid)
            target.base_weight.copy_(source.kan.base_weight)
            target.spline_weight.copy_(source.kan.spline_weight)
            if target.enable_standalone_scale_spline:
                target.spline_scaler.fill_(1.0)
