"""One training run, from settings and data to the files in its output folder."""

import math
import os
import platform
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from kansformer.checkpoint import load_model, save_model, start_from
from kansformer.data import PictureData, PictureDataset, Preprocessing, make_loader
from kansformer.data.augment import make_augmentation
from kansformer.device import choose_device
from kansformer.errors import JobFailed, UserError
from kansformer.evaluate import evaluate
from kansformer.train.config import TrainConfig
from kansformer.train.optimiser import make_optimiser, make_schedule
from kansformer.train.run_folder import RunFolder
from models.vit_model import VisionTransformer, model_config

# settings that may differ between a run and its continuation
FREE_ON_RESUME = ("resume", "overwrite", "device", "workers", "download", "download_dir", "output")
Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def train(
    config: TrainConfig, data: PictureData, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Trains a model and keeps the best by validation accuracy; see `RunFolder` for the files.

    Args:
        config: the settings, as `configure` gives them.
        data: pictures with a validation split.
        say: takes each line of the report on the run.

    Returns:
        The contents of summary.json.

    Raises:
        UserError: settings, weights or pictures that cannot be used.
        JobFailed: the loss is no longer finite.
    """
    assert data.val is not None, "the data needs a validation split"
    started = time.monotonic()
    device = choose_device(config.device)
    torch.manual_seed(config.seed)
    model, report = build_model(config, data)
    preprocessing = Preprocessing(model.config.img_size, model.config.in_chans)
    name = f"{data.name}-{config.model if config.weights is None else 'finetuned'}"
    folder = RunFolder(
        Path(config.output or Path("weights") / name),
        resume=config.resume,
        overwrite=config.overwrite,
    )
    folder.write_settings(
        {"train": config.to_dict(), "model": model.config.to_dict(), "weights": report},
        data.class_names,
    )
    frozen = freeze_layers(model) if config.freeze_layers else []
    model.to(device)

    workers = config.workers
    if workers is None:
        workers = 0 if data.train.in_memory else min(os.cpu_count() or 1, 8)
    pin = device.type != "cpu"
    augmentation = make_augmentation(config.augment, preprocessing)
    train_loader = make_loader(
        PictureDataset(data.train, augmentation, config.seed),
        config.batch_size, shuffle=True, drop_last=True, workers=workers, pin_memory=pin,
    )  # fmt: skip
    val_loader = make_loader(
        PictureDataset(data.val, preprocessing), config.batch_size, workers=workers, pin_memory=pin
    )
    steps = min(len(train_loader), config.max_steps or len(train_loader))
    optimiser = make_optimiser(model, config)
    schedule = make_schedule(optimiser, config, steps)
    mix = make_mix(config, len(data.class_names))
    # with mixup or cutmix the smoothing is already in the mixed targets
    criterion = nn.CrossEntropyLoss(label_smoothing=0.0 if mix else config.label_smoothing)

    sizes = [f"{len(data.train)} training", f"{len(data.val)} validation"]
    sizes += [f"{len(data.test)} test"] if data.test else []
    say(f"data    {data.name}: {len(data.class_names)} classes, {', '.join(sizes)} pictures")
    say(f"model   {describe(model)}")
    say(f"run     recipe {config.recipe}, {config.epochs} epochs on {device}, into {folder.path}")
    if report:
        say(f"weights {report['summary']}")
    if frozen:
        say(
            f"frozen  {len(frozen)} of {len(list(model.parameters()))} tensors: {summarise(frozen)}"
        )

    history: list[dict[str, Any]] = []
    if config.resume:
        history = restore(folder.load_state(), config, model, optimiser)
        say(f"resumed after epoch {len(history)}")
    tensorboard = folder.open_tensorboard()
    for epoch in range(len(history), config.epochs):
        epoch_started = time.monotonic()
        train_loader.sampler.epoch = epoch  # type: ignore[attr-defined]
        batches = tqdm(
            islice(train_loader, steps), f"epoch {epoch + 1}/{config.epochs}", steps,
            leave=False, mininterval=0.5, file=sys.stderr,
        )  # fmt: skip
        train_loss = train_one_epoch(
            model, criterion, optimiser, batches, device,
            first_step=epoch * steps, set_rate=schedule.step_update,
            clip_grad=config.clip_grad,
            mix=seeded(mix, config.seed, epoch) if mix else None,
        )  # fmt: skip
        train_seconds = time.monotonic() - epoch_started
        if not math.isfinite(train_loss):
            kept = f"; the best weights so far are {folder.best}" if history else ""
            raise JobFailed(
                f"the loss is {train_loss} in epoch {epoch + 1}; lower --lr ({config.lr}){kept}"
            )
        val = evaluate(model, tqdm(val_loader, "validation", leave=False, mininterval=0.5), device)
        row = {
            "epoch": epoch + 1,
            "train_loss": train_loss,
            "val_loss": val["loss"],
            "val_acc1": val["acc1"],
            "lr": optimiser.param_groups[0]["lr"],
            "images_per_second": steps * config.batch_size / train_seconds,
            "seconds": time.monotonic() - epoch_started,
        }
        history.append(row)
        improved = best_epoch(history) is row
        if improved:
            how = {"settings": config.to_dict(), "epoch": epoch + 1, "val_acc1": val["acc1"]}
            save_model(folder.best, model, preprocessing, data.class_names, how)
        folder.write_history(history)
        folder.save_state(state_of(config, model, optimiser, history))
        for key, value in row.items():
            tensorboard.add_scalar(key, value, epoch + 1)
        say(
            f"epoch {epoch + 1:>3}/{config.epochs}  train loss {train_loss:.4f}"
            f"  val loss {val['loss']:.4f}  val accuracy {val['acc1']:6.2f} %"
            f"  {row['seconds']:.1f} s{'  *' if improved else ''}"
        )
    tensorboard.close()

    best = best_epoch(history)
    summary = {
        "data": data.name,
        "classes": len(data.class_names),
        "pictures": {
            part: len(pictures)
            for part in ("train", "val", "test")
            if (pictures := getattr(data, part)) is not None
        },
        "model": config.model,
        "recipe": config.recipe,
        "parameters": count_parameters(model),
        "flops_per_image": count_flops(model),
        "best_epoch": best["epoch"],
        "val_acc1": best["val_acc1"],
        "val_loss": best["val_loss"],
        "epochs": len(history),
        "seconds": sum(row["seconds"] for row in history),
        "images_per_second": float(np.median([row["images_per_second"] for row in history])),
        "seed": config.seed,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }
    if data.test is not None:
        loader = make_loader(
            PictureDataset(data.test, preprocessing), config.batch_size, workers=workers
        )
        test = evaluate(
            load_model(folder.best).to(device), tqdm(loader, "test", leave=False), device
        )
        summary |= {"test_acc1": test["acc1"], "test_loss": test["loss"]}
    folder.write_summary(summary)
    say(f"best epoch {best['epoch']}: validation accuracy {best['val_acc1']:.2f} %")
    if data.test is not None:
        say(f"test accuracy {summary['test_acc1']:.2f} % on {len(data.test)} pictures")
    say(f"done in {time.monotonic() - started:.0f} s; everything is in {folder.path}")
    say(f"next: python predict.py PICTURE --weights {folder.best}")
    return summary


def build_model(
    config: TrainConfig, data: PictureData
) -> tuple[VisionTransformer, dict[str, Any] | None]:
    """The model of the settings, fresh or started from weights, and the report on those."""
    overrides = config.model_overrides()
    try:
        if config.weights is None:
            overrides = {"in_chans": data.in_chans, **overrides}
            settings = model_config(config.model, num_classes=len(data.class_names), **overrides)
            return VisionTransformer(settings), None
        model, report = start_from(config.weights, data.class_names, **overrides)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"--model {config.model}: {error}") from None
    return model, {"summary": str(report), "loaded": report.loaded, "fresh": report.fresh}


def freeze_layers(model: VisionTransformer) -> list[str]:
    """Leaves only the head and the last norm trainable; returns the names of the rest."""
    frozen = []
    for name, parameter in model.named_parameters():
        if not name.startswith(("head.", "norm.")):
            parameter.requires_grad_(False)
            frozen.append(name)
    return frozen


def make_mix(config: TrainConfig, num_classes: int) -> Mix | None:
    """timm's mixup and cutmix, (images, labels) -> (images, (B, num_classes) targets), if asked."""
    if config.mixup == 0 and config.cutmix == 0:
        return None
    if config.batch_size % 2:
        raise UserError(f"--mixup and --cutmix need an even --batch-size, not {config.batch_size}")
    from timm.data.mixup import Mixup

    return Mixup(
        config.mixup, config.cutmix, label_smoothing=config.label_smoothing, num_classes=num_classes
    )


def seeded(mix: Mix, seed: int, epoch: int) -> Mix:
    """Makes timm's mixing, which draws from NumPy's global generator, a function of the epoch."""
    np.random.seed(hash((seed, epoch)) % 2**32)
    return mix


def train_one_epoch(
    model: nn.Module,
    criterion: nn.Module,
    optimiser: torch.optim.Optimizer,
    batches: "tqdm[tuple[Tensor, Tensor]]",
    device: torch.device,
    *,
    first_step: int,
    set_rate: Callable[[int], None],
    clip_grad: float = 0.0,
    mix: Mix | None = None,
) -> float:
    """One pass over the batches.

    Args:
        first_step: number of the first step in the whole run.
        set_rate: called with each step's number, to set the learning rate.
        clip_grad: largest norm of the gradient; 0 for no limit.

    Returns:
        The mean training loss.
    """
    model.train()
    total, count = torch.zeros((), device=device), 0
    for count, (images, targets) in enumerate(batches, start=1):
        set_rate(first_step + count - 1)
        images, targets = (
            images.to(device, non_blocking=True),
            targets.to(device, non_blocking=True),
        )
        if mix is not None:
            images, targets = mix(images, targets)
        loss = criterion(model(images), targets)
        optimiser.zero_grad()
        loss.backward()
        if clip_grad:
            nn.utils.clip_grad_norm_(model.parameters(), clip_grad)
        optimiser.step()
        total += loss.detach()
        if count % 20 == 0:  # reading the value waits for the device
            batches.set_postfix(loss=f"{(total / count).item():.4f}", refresh=False)
    return (total / count).item()


def best_epoch(history: list[dict[str, Any]]) -> dict[str, Any]:
    """The row of the highest validation accuracy, at a tie the lower loss."""
    return max(history, key=lambda row: (row["val_acc1"], -row["val_loss"]))


def state_of(
    config: TrainConfig,
    model: VisionTransformer,
    optimiser: torch.optim.Optimizer,
    history: list[dict[str, Any]],
) -> dict[str, Any]:
    """All that the next epoch depends on; the schedule and the order follow from the epoch."""
    return {
        "settings": config.to_dict(),
        "model": model.state_dict(),
        "optimiser": optimiser.state_dict(),
        "history": history,
        "random": torch.get_rng_state(),
        "random_accelerator": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore(
    state: dict[str, Any],
    config: TrainConfig,
    model: VisionTransformer,
    optimiser: torch.optim.Optimizer,
) -> list[dict[str, Any]]:
    """Puts a saved state back and returns the epochs so far; a UserError if settings differ."""
    for name, value in config.to_dict().items():
        if name not in FREE_ON_RESUME and state["settings"].get(name) != value:
            flag = f"--{name.replace('_', '-')}"
            raise UserError(
                f"{flag} is {value} now and was {state['settings'].get(name)} in the run to resume;"
                f" give the same flags, or start anew with --overwrite"
            )
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    torch.set_rng_state(state["random"])
    if torch.cuda.is_available() and state["random_accelerator"]:
        torch.cuda.set_rng_state_all(state["random_accelerator"])
    return list(state["history"])


def count_parameters(model: nn.Module) -> int:
    """Number of learnable values."""
    return sum(parameter.numel() for parameter in model.parameters())


@torch.no_grad()
def count_flops(model: VisionTransformer) -> int:
    """Floating point operations of the matrix products for one picture, two per multiply-add."""
    config = model.config
    device = next(model.parameters()).device
    picture = torch.zeros(1, config.in_chans, config.img_size, config.img_size, device=device)
    was_training = model.training
    # the counter does not know the CPU's fused attention
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.eval()(picture)
    model.train(was_training)
    return counter.get_total_flops()


def describe(model: VisionTransformer) -> str:
    """The model in one line."""
    config = model.config
    tokens = (config.img_size // config.patch_size) ** 2
    return (
        f"{config.ffn} ViT, {config.depth} blocks of {config.embed_dim}, {tokens} patches of"
        f" {config.patch_size}x{config.patch_size}x{config.in_chans},"
        f" {count_parameters(model):,} parameters"
    )


def summarise(names: list[str]) -> str:
    """Distinct leading parts of parameter names."""
    return ", ".join(dict.fromkeys(name.split(".")[0] for name in names))


def versions() -> dict[str, str]:
    """Versions of what a run's figures depend on."""
    packages = ("torch", "torchvision", "timm", "numpy", "pillow")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
