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
from kansformer.symbolic.active_parameters import ActiveParameters
from kansformer.symbolic.dataset import Dataset, check_samples
from kansformer.symbolic.objective import Objective, edge_sizes
from kansformer.symbolic.symbolic_kan import SymbolicKAN
from models import kan_grid
from models.kan import KANLinear
from models.kan_grid import check_writable
from models.plain import plain

OPTIMIZERS = ("LM", "LBFGS", "Adam")
LBFGS_ITERATIONS = 20  # per step, as in pykan
GRID_STEPS, GRID_EVERY = 50, 10  # grids are updated every 10 of the first 50 steps

History = dict[str, list[float]]
Metric = Callable[[SymbolicKAN], float]


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
    """Trains a network in place. The test set is only used to record its error.

    The loss is the mean squared error plus `lamb` times the regularizer: `lamb_l1` · L1 norm and
    `lamb_entropy` · entropy of the sizes of the edges, `lamb_coef` · mean absolute coefficient and
    `lamb_coefdiff` · mean absolute difference of neighboring coefficients.

    Args:
        model: a `SymbolicKAN`, or a `KAN` or one of its layers, whose scalers are then multiplied
            into the coefficients.
        dataset: the samples.
        opt: "LM", the Levenberg-Marquardt method, the fastest for small networks; "LBFGS" with 20
            iterations per step; or "Adam".
        steps: maximum number of steps. LM stops earlier once it has converged. The others stop at a
            step after which the loss is not finite, and undo that step.
        update_grid: whether to adapt the grids to the samples, every 10 of the first 50 steps.
        batch: number of samples drawn for each step; None uses all. Not for LM.
        lr: learning rate; default 1 for LBFGS and 1e-2 for Adam. Not for LM.
        metrics: called with the network, as a `SymbolicKAN`, after every step.
        seed: for the batches, with a separate generator.
        progress: whether to show a bar with both errors and the regularizer; None shows it on a
            terminal only.

    Returns:
        "train_rmse", "test_rmse", "reg" and the metrics by name, with a value for each step.

    Raises:
        ValueError: an unknown optimizer, settings that it does not take, data that is not finite or
            does not match the network's shapes, or weights that cannot be written to.
    """
    if opt not in OPTIMIZERS:
        raise ValueError(f"opt must be one of {', '.join(OPTIMIZERS)}, not {opt!r}")
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
    network = model if isinstance(model, SymbolicKAN) else SymbolicKAN.of(model)
    x, y = check_samples(network, dataset["train_input"], dataset["train_label"])
    test_x, test_y = check_samples(network, dataset["test_input"], dataset["test_label"])
    objective = Objective(network, x, y, *factors)
    history: History = {name: [] for name in ("train_rmse", "test_rmse", "reg", *(metrics or {}))}

    with progress_bar(total=steps, shown=progress) as bar:

        def record() -> None:
            with torch.no_grad():
                _, layers = objective.run()
                penalty = objective.regularizer([edge_sizes(part) for part in layers])
            shown = {
                "train_rmse": rmse(network, x, y),
                "test_rmse": rmse(network, test_x, test_y),
                "reg": float(penalty),
            }
            shown |= {name: float(metric(network)) for name, metric in (metrics or {}).items()}
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
        _write_back(network, model)
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
    """Minimizes an objective in place by the Levenberg-Marquardt method, and returns the loss.

    Args:
        steps: maximum number of steps.
        record: called after every step.
        enough: loss at which to stop early.
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
            model.load_state_dict(before)  # undoes a diverging step
            break
        record()


def _write_back(network: SymbolicKAN, model: nn.Module) -> None:
    """Copies fitted splines to the KAN or layer that they came from, with scalers of 1."""
    targets = [module for module in model.modules() if isinstance(module, KANLinear)]
    with torch.no_grad():
        for source, target in zip(network.layers, targets, strict=True):
            target.grid.copy_(source.kan.grid)
            target.base_weight.copy_(source.kan.base_weight)
            target.spline_weight.copy_(source.kan.spline_weight)
            if target.enable_standalone_scale_spline:
                target.spline_scaler.fill_(1.0)


def rmse(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Root mean squared error over samples and outputs, computed on the model's device."""
    like = next(model.parameters())
    with torch.no_grad():
        return float((model(x.to(like)) - y.to(like)).square().mean().sqrt())


def move_grids(
    model: SymbolicKAN, x: Tensor, optimizer: torch.optim.Optimizer | None = None
) -> None:
    """Gives every layer uniform grids over the range of its inputs, in place.

    The splines are refitted by least squares. An input with too few distinct values keeps its grid.

    Args:
        x: samples (N, inputs).
        optimizer: its moments for the changed weights are reset.

    Raises:
        ValueError: weights that cannot be written to.
    """
    check_writable(model)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x = model.select(x)
        for layer in model.layers:
            with suppress(ValueError):
                kan_grid.update_grid(layer.kan, x, grid_eps=1.0, optimizer=optimizer)
            x = layer(x)
