"""One training run, from settings and data to the files in its output folder."""

import hashlib
import json
import math
import os
import re
import shlex
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from kansformer.checkpoint import load_model, save_model
from kansformer.data import PictureData, PictureDataset, Preprocessing, make_loader
from kansformer.data.augment import make_augmentation
from kansformer.device import choose_device
from kansformer.errors import JobFailed, UserError
from kansformer.evaluate import evaluate
from kansformer.pretrained import LoadReport, distill, load_for_classes
from kansformer.train.config import TrainConfig
from kansformer.train.facts import describe, versions
from kansformer.train.optimiser import clip_gradients, learning_rate, make_optimiser, make_schedule
from kansformer.train.run_folder import RunFolder
from models.twins import count, count_flops, count_parameters, matched, mlp_twin
from models.vit_model import VisionTransformer, ViTConfig, model_config

# settings that may differ between a run and its continuation
FREE_ON_RESUME = ("resume", "overwrite", "device", "workers", "download", "download_dir", "output")
PATHS = ("data_path", "output", "weights", "download_dir")  # private: not for the weights file
Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def train(
    config: TrainConfig,
    data: PictureData,
    say: Callable[[str], None] = print,
    project_root: Path | None = None,
) -> dict[str, Any]:
    """Trains a model and keeps the best by validation accuracy; see `RunFolder` for the files.

    Args:
        config: the settings, as `configure` gives them.
        data: pictures with a validation split.
        say: takes each line of the report on the run.
        project_root: a folder that is given class_indices.json too.

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
    model, preprocessing, loaded = build_model(config, data)
    model.to(device)

    workers = config.workers
    if workers is None:
        workers = 0 if data.train.in_memory else min(os.cpu_count() or 1, 8)
    load = partial(
        make_loader, batch_size=config.batch_size, workers=workers, pin=device.type == "cuda"
    )
    augmentation = make_augmentation(config.augment, preprocessing)
    train_loader = load(
        PictureDataset(data.train, augmentation, config.seed), shuffle=True, drop_last=True
    )
    val_loader = load(PictureDataset(data.val, preprocessing))
    steps = min(len(train_loader), config.max_steps or len(train_loader))
    optimiser = make_optimiser(model, config)
    schedule = make_schedule(optimiser, config, steps)
    mix = make_mix(config, len(data.class_names))
    # with mixup or cutmix the smoothing is already in the mixed targets
    criterion = nn.CrossEntropyLoss(label_smoothing=0.0 if mix else config.label_smoothing)

    what = config.model if config.weights is None else "finetuned"
    output = Path(config.output or Path("weights") / f"{data.name}-{what}")
    folder = RunFolder(
        output, Path(config.data_path), resume=config.resume, overwrite=config.overwrite
    )
    twin = sizes_of_twin(config, model.config)
    history: list[dict[str, Any]] = []
    if config.resume:
        history = restore(folder.load_state(), config, data, model, optimiser)

    sizes = [f"{len(data.train)} training", f"{len(data.val)} validation"]
    sizes += [f"{len(data.test)} test"] if data.test else []
    say(f"data    {data.name}: {len(data.class_names)} classes, {', '.join(sizes)} pictures")
    say(f"model   {describe(model)}")
    if model.config.ffn != "mlp":
        say(
            f"twin    {twin['parameters']:,} parameters with MLPs,"
            f" {twin['flops_per_image']:,} FLOPs per picture against {count_flops(model):,}"
        )
    if loaded:
        say(f"weights {loaded}")
    fitted = None
    if loaded and loaded.left_out_mlps and config.freeze_layers and not config.distill:
        raise UserError("--freeze-layers would leave the KAN blocks random; leave out --no-distill")
    if loaded and loaded.left_out_mlps and config.distill and not config.resume:
        fitted = fit_to_mlps(config, data, model, loaded, train_loader, val_loader)
        say(f"fitted  {fitted['text']}")
    say(
        f"run     recipe {config.recipe}, augmentation {config.augment}, {config.epochs} epochs on"
        f" {device}, into {folder.path}"
    )
    if history:
        say(f"resumed after epoch {len(history)}")
    frozen: list[str] | None = None

    for epoch in range(len(history), config.epochs):
        epoch_started = time.monotonic()
        train_loader.sampler.epoch = epoch  # type: ignore[attr-defined]
        if config.freeze_layers:
            thawed = epoch // config.unfreeze_every if config.unfreeze_every else 0
            was, frozen = frozen, freeze_layers(model, thawed)
            if frozen != was:
                say(f"frozen  {named_parts(frozen)}")
        if mix:
            seed_mixing(config.seed, epoch)
        batches = tqdm(
            islice(train_loader, steps), f"epoch {epoch + 1}/{config.epochs}", steps,
            leave=False, mininterval=0.5,
        )  # fmt: skip
        train_loss, count = train_one_epoch(
            model, criterion, optimiser, batches, device,
            first_step=epoch * steps, set_rate=schedule.step_update,
            clip_grad=config.clip_grad, mix=mix,
        )  # fmt: skip
        train_seconds = time.monotonic() - epoch_started
        bar = tqdm(val_loader, "validation", leave=False, mininterval=0.5)
        val = evaluate(model, bar, device)
        if not math.isfinite(train_loss + val["loss"]):
            kept = f"; the best weights so far are {folder.best}" if history else ""
            raise JobFailed(
                f"the loss is not finite in epoch {epoch + 1} (training {train_loss}, validation"
                f" {val['loss']}); lower --lr ({config.lr}){kept}"
            )
        row = {
            "epoch": epoch + 1,
            "train_loss": train_loss,
            "val_loss": val["loss"],
            "val_acc1": val["acc1"],
            "lr": learning_rate(optimiser),
            "images_per_second": count / train_seconds,
            "seconds": time.monotonic() - epoch_started,
        }
        history.append(row)
        if len(history) == 1:
            settings = {
                "train": config.to_dict(),
                "model": model.config.to_dict(),
                "preprocessing": preprocessing.to_dict(),
                "weights": loaded and {**loaded.to_dict(), "fitted": fitted},
            }
            folder.begin(settings, data.class_names, project_root)
        improved = best_epoch(history) is row
        if improved:
            public = {k: v for k, v in config.to_dict().items() if k not in PATHS}
            how = {"data": data.name, "settings": public, "epoch": epoch + 1, **val}
            save_model(folder.best, model, preprocessing, data.class_names, how)
        folder.save_state(state_of(config, data, model, optimiser, history))
        folder.write_history(history)
        say(
            f"epoch {epoch + 1:>3}/{config.epochs}  train loss {train_loss:.4f}"
            f"  val loss {val['loss']:.4f}  val accuracy {val['acc1']:6.2f} %"
            f"  {row['seconds']:.1f} s{'  *' if improved else ''}"
        )

    best = best_epoch(history)
    summary = {
        "data": data.name,
        "classes": len(data.class_names),
        "pictures": {"train": len(data.train), "val": len(data.val), "test": len(data.test or ())},
        "model": model.config.to_dict(),
        "recipe": config.recipe,
        "parameters": count_parameters(model),
        "flops_per_image": count_flops(model),
        "mlp_twin": twin,
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
    say(f"best epoch {best['epoch']}: validation accuracy {best['val_acc1']:.2f} %")
    if data.test is not None:
        loader = load(PictureDataset(data.test, preprocessing))
        best_model = load_model(folder.best).to(device)
        test = evaluate(best_model, tqdm(loader, "test", leave=False), device)
        summary |= {"test_acc1": test["acc1"], "test_loss": test["loss"]}
        say(f"test accuracy {test['acc1']:.2f} % on {len(data.test)} pictures")
    folder.finish(summary)
    say(f"done in {time.monotonic() - started:.0f} s; everything is in {folder.path}")
    say(f"next: python predict.py PICTURE --weights {shlex.quote(str(folder.best))}")
    return summary


def build_model(
    config: TrainConfig, data: PictureData
) -> tuple[VisionTransformer, Preprocessing, LoadReport | None]:
    """The model of the settings, fresh or started from weights, and the report on those."""
    overrides = config.model_overrides()
    if config.weights is not None:
        if config.match != "none":
            raise UserError("--match is for models from scratch; with --weights, --kan-hidden")
        model, report = load_for_classes(
            config.weights, data.class_names, preprocessing=config.preprocessing, **overrides
        )
        return model, report.preprocessing, report
    overrides = {"in_chans": data.in_chans, **overrides}
    try:
        settings = model_config(config.model, num_classes=len(data.class_names), **overrides)
        if config.match != "none":
            settings = matched(settings, config.match)
    except ValueError as error:
        raise UserError(f"--model {config.model}: {error}") from None
    preprocessing = Preprocessing(settings.img_size, settings.in_chans)
    if config.preprocessing is not None:
        preprocessing = preprocessing.with_statistics(config.preprocessing)
    return VisionTransformer(settings), preprocessing, None


def sizes_of_twin(config: TrainConfig, settings: ViTConfig) -> dict[str, int]:
    """Parameters and FLOPs of the same model with MLP blocks."""
    twin = mlp_twin(settings)
    if config.match != "none":  # the model may have been given another width, its twin was not
        twin = replace(twin, mlp_ratio=model_config(config.model).mlp_ratio)
    return {"parameters": count(twin, "params"), "flops_per_image": count(twin, "flops")}


def fit_to_mlps(
    config: TrainConfig,
    data: PictureData,
    model: VisionTransformer,
    loaded: LoadReport,
    train_loader: Iterable[Any],
    val_loader: Iterable[Any],
) -> dict[str, Any]:
    """Fits the model's narrow KAN blocks to the MLPs that the weights file has in their place.

    Returns:
        R² by block and, where the file's head is kept, the validation accuracy right after the fit
        beside that of the model with its MLPs; with a line of "text".
    """
    device = model.pos_embed.device
    shape = {name: getattr(model.config, name) for name in ("img_size", "patch_size", "num_heads",
                                                             "in_chans")}  # fmt: skip
    teacher, _ = load_for_classes(str(config.weights), data.class_names, **shape)
    teacher.to(device)
    fit = distill(
        teacher,
        model,
        (images for images, _ in train_loader),
        (images for images, _ in val_loader),
        config.distill_steps,
    )
    found: dict[str, Any] = {**fit.to_dict(), "text": str(fit)}
    if not any(name.startswith("head.") for name in loaded.fresh):
        found["val_acc1"] = evaluate(model, val_loader, device)["acc1"]
        found["val_acc1_of_mlps"] = evaluate(teacher, val_loader, device)["acc1"]
        found["text"] += (
            f"; validation accuracy {found['val_acc1']:.2f} %, with the MLPs"
            f" {found['val_acc1_of_mlps']:.2f} %"
        )
    return found


def freeze_layers(model: VisionTransformer, thawed: int = 0) -> list[str]:
    """Leaves only what stands behind the blocks trainable, and the last `thawed` blocks.

    With all blocks thawed, the embedding trains too. Returns the names of the frozen parameters.
    """
    first = model.config.depth - thawed
    frozen = []
    for name, parameter in model.named_parameters():
        block = re.match(r"blocks\.(\d+)\.", name)
        behind = name.startswith(("head.", "head_dist.", "pre_logits.", "norm.", "fc_norm."))
        trains = first <= 0 or behind or (block is not None and int(block[1]) >= first)
        parameter.requires_grad_(trains)
        if not trains:
            frozen.append(name)
    return frozen


def named_parts(names: list[str]) -> str:
    """What parameters are of, in few words: patch_embed, pos_embed, blocks 0-3."""
    blocks = [int(match[1]) for name in names if (match := re.match(r"blocks\.(\d+)\.", name))]
    parts = dict.fromkeys(name.split(".")[0] for name in names if not name.startswith("blocks."))
    last = [f"blocks 0 to {max(blocks)}"] if blocks else []
    return ", ".join([*parts, *last]) or "nothing"


def make_mix(config: TrainConfig, num_classes: int) -> Mix | None:
    """timm's mixup and cutmix, (images, labels) -> (images, (B, num_classes) targets), if asked.

    A batch of odd size, which timm refuses, is left unmixed.
    """
    if config.mixup == 0 and config.cutmix == 0:
        return None
    from timm.data.mixup import Mixup, mixup_target

    smoothing = config.label_smoothing
    mixup = Mixup(config.mixup, config.cutmix, label_smoothing=smoothing, num_classes=num_classes)

    def mix(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if len(images) % 2:
            return images, mixup_target(labels, num_classes, smoothing=smoothing)
        return mixup(images, labels)

    return mix


def seed_mixing(seed: int, epoch: int) -> None:
    """Makes timm's mixing, which draws from NumPy's global generator, a function of the epoch."""
    np.random.seed(hash((seed, epoch)) % 2**32)


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
) -> tuple[float, int]:
    """One pass over the batches.

    Args:
        first_step: number of the first step in the whole run.
        set_rate: called with each step's number, to set the learning rate.
        clip_grad: largest norm of the gradient; 0 for no limit.

    Returns:
        The mean training loss, and the number of pictures. A loss that is not finite ends the pass
        within 20 steps.
    """
    model.train()
    total = torch.zeros((), device=device)
    pictures = 0
    for done, (images, targets) in enumerate(batches, start=1):
        set_rate(first_step + done - 1)
        images = images.to(device, non_blocking=True)
        targets = targets.to(device, non_blocking=True)
        if mix is not None:
            images, targets = mix(images, targets)
        loss = criterion(model(images), targets)
        optimiser.zero_grad()
        loss.backward()
        if clip_grad:
            clip_gradients(model, clip_grad)
        optimiser.step()
        total += loss.detach()
        pictures += len(images)
        if done % 20 == 0:  # reading the value waits for the device
            mean = (total / done).item()
            batches.set_postfix(loss=f"{mean:.4f}", refresh=False)
            if not math.isfinite(mean):
                break
    return (total / done).item(), pictures


def best_epoch(history: list[dict[str, Any]]) -> dict[str, Any]:
    """The row of the highest validation accuracy, at a tie the lower loss."""
    return max(history, key=lambda row: (row["val_acc1"], -row["val_loss"]))


def fingerprint(data: PictureData) -> str:
    """Changes with the classes and with the names, order and labels of the pictures."""
    digest = hashlib.sha256(json.dumps(data.class_names).encode())
    for pictures in (data.train, data.val):
        assert pictures is not None
        names = [pictures.name(index) for index in range(len(pictures))]
        digest.update(json.dumps([names, pictures.labels.tolist()]).encode())
    return digest.hexdigest()


def state_of(
    config: TrainConfig,
    data: PictureData,
    model: VisionTransformer,
    optimiser: torch.optim.Optimizer,
    history: list[dict[str, Any]],
) -> dict[str, Any]:
    """All that the next epoch depends on; the schedule and the order follow from the epoch."""
    return {
        "settings": config.to_dict(),
        "data": fingerprint(data),
        "model": model.state_dict(),
        "optimiser": optimiser.state_dict(),
        "history": history,
        "random": torch.get_rng_state(),
        "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore(
    state: dict[str, Any],
    config: TrainConfig,
    data: PictureData,
    model: VisionTransformer,
    optimiser: torch.optim.Optimizer,
) -> list[dict[str, Any]]:
    """Puts a saved state back and returns the epochs so far.

    Raises:
        UserError: the settings or the pictures are not those of the run.
    """
    for name, value in config.to_dict().items():
        if name not in FREE_ON_RESUME and state["settings"].get(name) != value:
            raise UserError(
                f"--{name.replace('_', '-')} is {value} now and was {state['settings'].get(name)}"
                " in the run to resume; give the same flags, or start anew with --overwrite"
            )
    if state["data"] != fingerprint(data):
        raise UserError(
            f"{config.data_path}: classes or pictures are not those of the run to resume;"
            " put them back, or start anew with --overwrite"
        )
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    torch.set_rng_state(state["random"])
    if torch.cuda.is_available() and state["random_cuda"]:
        torch.cuda.set_rng_state_all(state["random_cuda"])
    return list(state["history"])
