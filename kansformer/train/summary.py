"""Model, library versions and final figures of a run, in a line and in summary.json."""

import platform
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from kansformer.train.build import twin_sizes
from kansformer.train.run import Run
from kansformer.train.tune import count_trained, names_in_epoch
from kansformer.words import number
from models.twins import count, count_parameters
from models.vit_model import VisionTransformer


def describe_model(model: VisionTransformer) -> str:
    """The model in one line."""
    config = model.config
    patches = (config.img_size // config.patch_size) ** 2
    return (
        f"{config.ffn} ViT, {number(config.depth, 'block')} of {config.embed_dim},"
        f" {number(patches, 'patch')} of {config.patch_size}x{config.patch_size}x{config.in_chans},"
        f" {count_parameters(model):,} parameters"
    )


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries on which a run's figures depend."""
    packages = ("torch", "torchvision", "timm", "numpy", "pillow")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def summarize(run: Run) -> dict[str, Any]:
    """The contents of summary.json for a finished run, without its test figures."""
    data, config, history = run.data, run.config, run.progress.history
    best, trained = run.best, names_in_epoch(run.model, config, run.progress.epoch - 1)
    trained_rows = [row for row in history if row["epoch"] > 0]  # epoch 0 is the head alone
    head = (run.load_report or {}).get("head")
    return {
        "data": data.name,
        "classes": len(data.class_names),
        "pictures": {
            "train": len(data.train), "val": len(data.val or ()), "test": len(data.test or ())
        },
        "model": run.model.config.to_dict(),
        "recipe": config.recipe,
        "parameters": count_parameters(run.model),
        "trained_parameters": count_trained(run.model, trained),
        "flops_per_image": count(run.model.config, "flops"),
        "mlp_twin": twin_sizes(config, run.model.config),
        "head": head and {name: head[name] for name in ("pool", "c", "val_acc1", "seconds")},
        "best_epoch": best["epoch"],
        "val_acc1": best["val_acc1"],
        "val_loss": best["val_loss"],
        "epochs": run.progress.epoch,
        "seconds": sum(row["seconds"] for row in history),
        "images_per_second": float(np.median([row["images_per_second"] for row in trained_rows])),
        "seed": config.seed,
        "lr": config.lr,
        "device": str(run.ranks.device),
        "processes": run.ranks.world,
        "threads": torch.get_num_threads(),
        "versions": library_versions(),
    }  # fmt: skip
