"""Trains a small KAN, or any other module, on tensors.

This does not use skorch, whose net would need a subclass for the penalties on effective weights
(coefficients times scaler) and callbacks for clipping and early stopping; this loop over tensors in
memory is about as long and adds no dependency.
"""

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from kansformer.errors import JobFailed
from kansformer.progress import progress_bar
from models.kan import KANLinear
from models.plain import plain

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": F.mse_loss,
    "cross_entropy": F.cross_entropy,
}


class KANTrainer:
    """Trains a module in place, on full batches or minibatches, and records a history.

    The objective is the loss, plus l1 · Σ|w| + l2 · Σw² over `effective_weights`, plus
    `penalty(model)`. With validation data, the weights of the best epoch are restored at the end.

    Args:
        model: the module; training uses its device and dtype.
        loss: "mse", "cross_entropy", or a function (output, target) -> scalar.
        optimizer: a function parameter groups -> optimizer. Default: AdamW with `lr`, and with
            `weight_decay` on matrices and splines but not on vectors such as biases, norms and
            gates.
        scheduler: a function optimizer -> scheduler, which steps after every epoch.
        lr, weight_decay: for the default optimizer.
        l1, l2: weights of the penalties.
        penalty: a function model -> scalar.
        clip_norm: largest norm of the gradient; None for no limit.
        batch_size: samples per step; None for all at once, which LBFGS needs.
        patience: epochs without a better validation loss after which training stops; None for
            never.
        seed: seed of the order of the samples; torch's global generator is not used.

    Attributes:
        history: one dict per epoch: epoch (from 1), train_loss (mean over the epoch's steps,
            penalties included), lr, and, with validation data, val_loss.
        best_epoch: the best epoch of the last `fit`, whose weights the model has; None before.

    Raises:
        ValueError: an unknown loss, or a number out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        loss: str | Callable[[Tensor, Tensor], Tensor] = "mse",
        optimizer: Callable[[Iterable[Any]], Optimizer] | None = None,
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        lr: float = 1e-2,
        weight_decay: float = 1e-2,
        l1: float = 0.0,
        l2: float = 0.0,
        penalty: Callable[[nn.Module], Tensor] | None = None,
        clip_norm: float | None = 1.0,
        batch_size: int | None = 32,
        patience: int | None = None,
        seed: int = 0,
    ) -> None:
        if isinstance(loss, str) and loss not in LOSSES:
            raise ValueError(
                f"loss must be one of {', '.join(LOSSES)}, or a function, not {loss!r}"
            )
        lr, weight_decay, l1, l2, clip_norm = plain((lr, weight_decay, l1, l2, clip_norm))
        batch_size, patience, seed = plain((batch_size, patience, seed))
        for name, value in (("lr", lr), ("weight_decay", weight_decay), ("l1", l1), ("l2", l2)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be a number of at least 0, not {value}")
        if clip_norm is not None and not clip_norm > 0:
            raise ValueError(f"clip_norm must be above 0, or None, not {clip_norm}")
        for name, count in (("batch_size", batch_size), ("patience", patience)):
            if count is not None and count < 1:
                raise ValueError(f"{name} must be at least 1, or None, not {count}")
        self.model = model
        self.loss = LOSSES[loss] if isinstance(loss, str) else loss
        self.l1, self.l2, self.penalty = l1, l2, penalty
        self.clip_norm, self.batch_size, self.patience = clip_norm, batch_size, patience
        make = optimizer or partial(AdamW, lr=lr)
        decay = 0.0 if optimizer else weight_decay
        self.optimizer = make(_groups(model, decay) if decay else _trainable(model))
        self.scheduler = scheduler(self.optimizer) if scheduler else None
        self.generator = torch.Generator().manual_seed(seed)
        self.history: list[dict[str, float]] = []
        self.best_epoch: int | None = None

    def fit(
        self,
        x: Tensor,
        y: Tensor,
        *,
        validation: tuple[Tensor, Tensor] | None = None,
        epochs: int = 200,
        progress: bool = False,
    ) -> list[dict[str, float]]:
        """Trains for `epochs` more epochs, or until early stopping, and returns the history.

        Args:
            x, y: (N, inputs), and (N, outputs), or (N,) class indices of any integer type for
                "cross_entropy".
            validation: x and y of other samples.
            progress: whether to show a progress bar.

        Raises:
            ValueError: tensors that do not fit, are empty or not finite; class indices without an
                output; or patience without validation data.
            JobFailed: the loss is not finite; with validation data, the model then has its best
                weights so far.
        """
        if self.patience is not None and validation is None:
            raise ValueError("patience needs validation data")
        x, y = self._on_device(x, y)
        held_out = None if validation is None else self._on_device(*validation)
        best_loss, best, waited = math.inf, _weights(self.model), 0
        bar = progress_bar(range(plain(epochs)), shown=progress, unit="epoch")
        try:
            for _ in bar:
                row = self._epoch(x, y, held_out)
                self.history.append(row)
                bar.set_postfix({key: f"{row[key]:.4g}" for key in row if key.endswith("loss")})
                if row.get("val_loss", -math.inf) < best_loss:
                    best_loss, waited = row.get("val_loss", math.inf), 0
                    self.best_epoch = int(row["epoch"])
                    if held_out is not None:
                        best = _weights(self.model)
                else:
                    waited += 1
                if self.patience is not None and waited >= self.patience:
                    break
        finally:
            bar.close()
            if held_out is not None:
                self.model.load_state_dict(best)
        return self.history

    def predict(self, x: Tensor, batch_size: int = 4096) -> Tensor:
        """Output of the model in eval mode for x (N, inputs), batch by batch."""
        return predict(self.model, x, batch_size)

    def _on_device(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Checks samples, and moves them to the model's device and dtype."""
        if len(x) != len(y) or len(x) == 0:
            raise ValueError(
                f"{len(x)} inputs and {len(y)} targets; there must be as many of both, and not 0"
            )
        if not (x.isfinite().all() and y.isfinite().all()):
            raise ValueError("inputs and targets must be finite")
        like = next(self.model.parameters())
        x = x.to(like)
        if y.is_floating_point() or self.loss is F.mse_loss:
            return x, y.to(like)
        y = y.to(like.device)
        return x, y.long() if self.loss is F.cross_entropy else y

    def _epoch(
        self, x: Tensor, y: Tensor, held_out: tuple[Tensor, Tensor] | None
    ) -> dict[str, float]:
        """Makes one pass over the samples in a new order, and returns its row of the history."""
        lr = float(self.optimizer.param_groups[0]["lr"])
        self.model.train()
        order = torch.randperm(len(x), generator=self.generator).to(x.device)
        losses = [
            self._step(x[rows], y[rows]) * len(rows)
            for rows in order.split(self.batch_size or len(x))
        ]
        row = {"epoch": float(len(self.history) + 1), "train_loss": sum(losses) / len(x), "lr": lr}
        if held_out is not None:
            with torch.no_grad():
                output = predict(self.model, held_out[0])
                self._check_targets(output, held_out[1])
                row["val_loss"] = float(self.loss(output, held_out[1]))
            _check_finite(row["val_loss"])
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(row.get("val_loss", row["train_loss"]))
        elif self.scheduler is not None:
            self.scheduler.step()
        return row

    def _step(self, x: Tensor, y: Tensor) -> float:
        """One optimizer step, which may evaluate the loss repeatedly; returns the first loss."""

        def closure() -> Tensor:
            self.optimizer.zero_grad()
            output = self.model(x)
            self._check_targets(output, y)
            loss = self.loss(output, y)
            if self.l1:
                loss = loss + self.l1 * sum(w.abs().sum() for w in effective_weights(self.model))
            if self.l2:
                loss = loss + self.l2 * sum(w.square().sum() for w in effective_weights(self.model))
            if self.penalty is not None:
                loss = loss + self.penalty(self.model)
            _check_finite(float(loss.detach()))
            loss.backward()
            if self.clip_norm is not None:
                nn.utils.clip_grad_norm_(_trainable(self.model), self.clip_norm)
            return loss

        loss: Tensor = self.optimizer.step(closure)  # type: ignore[arg-type, assignment]
        return float(loss.detach())

    def _check_targets(self, output: Tensor, y: Tensor) -> None:
        """Raises a ValueError for shapes that would be broadcast, or class indices out of range."""
        if y.is_floating_point() and output.shape != y.shape:
            raise ValueError(f"targets are {tuple(y.shape)}, but outputs {tuple(output.shape)}")
        if not y.is_floating_point() and self.loss is F.cross_entropy:
            low, high, classes = int(y.min()), int(y.max()), output.shape[1]
            if low < 0 or high >= classes:
                raise ValueError(f"class indices must be 0 to {classes - 1}, not {low} to {high}")


@torch.no_grad()
def predict(model: nn.Module, x: Tensor, batch_size: int = 4096) -> Tensor:
    """Output of a model in eval mode for x (N, inputs), batch by batch.

    The model's mode is restored; the result is on the device of x.

    Raises:
        ValueError: a batch size below 1.
    """
    batch_size = plain(batch_size)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    like = next(model.parameters())
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        parts = [model(part.to(like)).to(x.device) for part in x.split(batch_size)]
    finally:
        for module, mode in modes:
            module.training = mode
    return torch.cat(parts)


def effective_weights(model: nn.Module) -> list[Tensor]:
    """The weights that are penalized: base weights and spline coefficients, and linear weights.

    Coefficients are multiplied by their scaler; otherwise the scaler would grow instead.
    """
    weights = []
    for module in model.modules():
        if isinstance(module, KANLinear):
            weights += [module.base_weight, module.scaled_spline_weight]
        elif isinstance(module, nn.Linear):
            weights.append(module.weight)
    return weights


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the model's state."""
    return {name: value.clone() for name, value in model.state_dict().items()}


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups: matrices with weight decay, vectors without."""
    matrices = [p for p in _trainable(model) if p.ndim >= 2]
    vectors = [p for p in _trainable(model) if p.ndim < 2]
    return [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]


def _check_finite(loss: float) -> None:
    if not math.isfinite(loss):
        raise JobFailed(f"the loss is {loss}; try a lower learning rate, or scale the data")
