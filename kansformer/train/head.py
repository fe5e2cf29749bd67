"""The head of a pretrained model, fitted to the features of the pictures before training.

Fine-tuning that starts from a random head distorts the features in its first steps. A head that is
fitted first keeps them (Kumar et al., 2022, "Fine-tuning can distort pretrained features and
underperform out-of-distribution": linear probing, then fine-tuning).
"""

import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kansformer.errors import UserError
from kansformer.pretrained import LoadReport
from kansformer.train.config import TrainConfig
from kansformer.train.features import Features, poolings
from models.vit_model import VisionTransformer

# sklearn's C, the inverse of the weight of the L2 penalty: from strong to weak
STRENGTHS = tuple(float(c) for c in 10.0 ** np.arange(-5, 2.01, 0.5))
PATIENCE = 4  # weaker penalties that are tried after the best one
ITERATIONS = 1000  # of L-BFGS
SMALL_PROBLEM = 50_000_000  # products of a feature and a weight in one iteration
ABSENT = -20.0  # bias of a class without training pictures
POOLING = {"token": "class token", "avg": "mean of the patches", "both": "class token and mean"}
# of a KAN head, which has no closed problem to solve
KAN_STEPS, KAN_CHECKS, KAN_BATCH, KAN_RATE = 1000, 20, 256, 1e-3


def fits_head(config: TrainConfig, loaded: LoadReport) -> bool:
    """Whether the head is fitted to features before training: a fresh one, or with --tune head.

    Features of narrow KAN blocks that are neither in the file nor fitted to its MLPs are of no use.
    """
    fresh = any(name.startswith("head.") for name in loaded.fresh)
    random = loaded.left_out_mlps and not config.distill
    return config.head_first and not random and (fresh or config.tuned == {"head"})


@dataclass(frozen=True)
class Linear:
    """A linear classifier of features: weight (C, D), bias (C,)."""

    weight: np.ndarray
    bias: np.ndarray

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Logits, (N, D) -> (N, C)."""
        return features @ self.weight.T + self.bias


@dataclass(frozen=True)
class HeadFit:
    """What was fitted, with its figures.

    Attributes:
        pool: what the head sees, as `ViTConfig.pool`.
        c: sklearn's C of the chosen penalty; None for a KAN head.
        train_loss, val_loss: mean cross-entropy, nats.
        val_acc1: percent.
        pictures: training pictures, each view counted.
        seconds: of computing or reading the features, and of the fit.
        tried: a row for each pooling and penalty.
    """

    pool: str
    c: float | None
    train_loss: float
    val_loss: float
    val_acc1: float
    pictures: int
    seconds: float
    tried: list[dict[str, Any]]

    def __str__(self) -> str:
        penalty = "" if self.c is None else f", C = {self.c:.2g}"
        return (
            f"fitted to the features of {self.pictures:,} pictures ({POOLING[self.pool]}{penalty}):"
            f" validation accuracy {self.val_acc1:.2f} %, in {self.seconds:.0f} s"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for config.json."""
        return asdict(self)


def fit_head(
    model: VisionTransformer,
    train: Features,
    val: Features,
    pools: Sequence[str],
    *,
    balanced: bool = False,
    seed: int = 0,
    started: float | None = None,
) -> HeadFit:
    """Fits the model's head to features and puts it into the model, whose pooling may change.

    A linear head is the logistic regression with the lowest validation loss over poolings and
    penalties. A KAN head takes the pooling of that regression and is trained by AdamW on the
    features; the step with the lowest validation loss counts.

    Args:
        train, val: of `head_features`.
        pools: poolings to choose from, as `poolings` names them.
        balanced: weight the classes equally.
        seed: of the KAN head's batches.
        started: `time.monotonic()` when the computation of the features began.

    Raises:
        UserError: there are too few pictures.
    """
    if len(set(train.labels)) < 2 or not len(val):
        raise UserError(
            "the head cannot be fitted to features: it takes readable training pictures of two"
            " classes, and a readable validation picture; add some, or give --no-head-first"
        )
    started = time.monotonic() if started is None else started
    classes = model.config.num_classes
    columns = poolings(model)
    best: tuple[dict[str, Any], Linear] | None = None
    tried: list[dict[str, Any]] = []
    for pool in pools:
        for row, classifier in logistic_regressions(
            select(train, columns[pool]), select(val, columns[pool]), classes, balanced
        ):
            tried.append({"pool": pool, **row})
            if best is None or row["val_loss"] < best[0]["val_loss"]:
                best = tried[-1], classifier
    assert best is not None
    row, classifier = best
    if row["pool"] != model.config.pool:
        model.reset_classifier(classes, row["pool"])
    if model.config.head == "kan":
        part = columns[row["pool"]]
        row = train_kan_head(model, select(train, part), select(val, part), balanced, seed)
    else:
        set_linear_head(model, classifier)
    return HeadFit(
        model.config.pool, row.get("c"), row["train_loss"], row["val_loss"], row["val_acc1"],
        len(train), time.monotonic() - started, tried,
    )  # fmt: skip


def select(features: Features, columns: slice) -> Features:
    """Some columns of the features."""
    return Features(features.values[:, columns], features.labels)


def logistic_regressions(
    train: Features, val: Features, classes: int, balanced: bool = False
) -> list[tuple[dict[str, Any], Linear]]:
    """scikit-learn's logistic regression on standardized features, with weaker and weaker penalty.

    It stops where PATIENCE penalties in a row were no better in validation loss than the best.

    Returns:
        For each penalty its "c", "train_loss", "val_loss" and "val_acc1", and the classifier of
        features that are not standardized.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    mean, spread = train.values.mean(axis=0, dtype=float), train.values.std(axis=0, dtype=float)
    spread[spread == 0] = 1.0
    standardized = (train.values - mean) / spread
    model = LogisticRegression(
        max_iter=ITERATIONS, warm_start=True, class_weight="balanced" if balanced else None
    )
    # threads of a small problem wait for each other longer than they compute
    threads = 1 if standardized.size * classes < SMALL_PROBLEM else None
    results: list[tuple[dict[str, Any], Linear]] = []
    best = 0
    for c in STRENGTHS:
        model.set_params(C=c)
        with warnings.catch_warnings(), threadpool_limits(threads):
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(standardized, train.labels)
        classifier = _as_linear(model, mean, spread, classes)
        row = {"c": c, "train_loss": cross_entropy(classifier(train.values), train.labels),
               "val_loss": cross_entropy(classifier(val.values), val.labels),
               "val_acc1": accuracy(classifier(val.values), val.labels)}  # fmt: skip
        results.append((row, classifier))
        if row["val_loss"] < results[best][0]["val_loss"]:
            best = len(results) - 1
        elif len(results) - 1 - best >= PATIENCE:
            break
    return results


def _as_linear(model: Any, mean: np.ndarray, spread: np.ndarray, classes: int) -> Linear:
    """A fitted `LogisticRegression` on standardized features, for features as they are."""
    weight, bias = model.coef_, model.intercept_
    if len(weight) == 1:  # of two classes, sklearn gives the difference of the logits
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    weight = weight / spread
    bias = bias - weight @ mean
    full = Linear(np.zeros((classes, weight.shape[1])), np.full(classes, ABSENT))
    full.weight[model.classes_], full.bias[model.classes_] = weight, bias
    return full


def set_linear_head(model: VisionTransformer, classifier: Linear) -> None:
    """Puts a classifier of `head_features` into the model's linear head, or into its two heads."""
    weight, bias = (torch.from_numpy(array).float() for array in vars(classifier).values())
    heads: list[tuple[Any, Tensor]] = [(model.head, weight)]
    if model.head_dist is not None:  # the model takes the mean of its two heads
        first, second = (2 * weight).chunk(2, dim=1)
        heads = [(model.head, first), (model.head_dist, second)]
    with torch.no_grad():
        for head, part in heads:
            head.weight.copy_(part)
            head.bias.copy_(bias)


def train_kan_head(
    model: VisionTransformer, train: Features, val: Features, balanced: bool, seed: int
) -> dict[str, Any]:
    """Trains a KAN head on features; returns "train_loss", "val_loss" and "val_acc1" of the best.

    It has the weights of the step, of KAN_CHECKS, with the lowest validation loss.
    """
    device = model.pos_embed.device
    x, y, val_x = (torch.from_numpy(a).to(device) for a in (train.values, train.labels, val.values))
    weights = None
    if balanced:
        counts = np.bincount(train.labels, minlength=model.config.num_classes).clip(min=1)
        weights = torch.tensor(len(y) / (len(counts) * counts), dtype=torch.float32, device=device)
    heads = nn.ModuleList(
        [model.head] if model.head_dist is None else [model.head, model.head_dist]
    )

    def logits(features: Tensor) -> Tensor:
        parts = features.chunk(len(heads), dim=1)
        return torch.stack([head(part) for head, part in zip(heads, parts, strict=True)]).mean(0)

    optimizer = torch.optim.AdamW(heads.parameters(), KAN_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, KAN_STEPS)
    generator = torch.Generator().manual_seed(seed)
    best: tuple[dict[str, float], dict[str, Any]] | None = None
    for step in range(1, KAN_STEPS + 1):
        batch = torch.randint(len(y), (min(KAN_BATCH, len(y)),), generator=generator).to(device)
        optimizer.zero_grad()
        F.cross_entropy(logits(x[batch]), y[batch], weights).backward()
        optimizer.step()
        schedule.step()
        if step % (KAN_STEPS // KAN_CHECKS):
            continue
        with torch.no_grad():
            on_train, on_val = (logits(part).float().cpu().numpy() for part in (x, val_x))
        row = {"train_loss": cross_entropy(on_train, train.labels),
               "val_loss": cross_entropy(on_val, val.labels),
               "val_acc1": accuracy(on_val, val.labels)}  # fmt: skip
        if best is None or row["val_loss"] < best[0]["val_loss"]:
            best = row, {name: value.clone() for name, value in heads.state_dict().items()}
    assert best is not None
    heads.load_state_dict(best[1])
    return best[0]


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean cross-entropy in nats of logits (N, C) and labels (N,)."""
    return float(F.cross_entropy(torch.from_numpy(logits).double(), torch.from_numpy(labels)))


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Percentage of the rows of logits (N, C) whose largest entry is the label's."""
    return 100 * float(np.mean(logits.argmax(axis=1) == labels))
