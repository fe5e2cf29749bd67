"""Settings for a data set, with what they gave.

Each recipe's docstring holds the exact command, how long it took and the accuracy it gave, or says
that it has not been run yet.
"""

from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import replace
from typing import Any

import numpy as np

from kansformer.checkpoint import recorded_split, settings_of, training_of
from kansformer.data import PictureData, load_data
from kansformer.data.augment import POLICIES
from kansformer.data.sources import SplitRule
from kansformer.data.split import stratified_split
from kansformer.data.usable import concerns, usable
from kansformer.device import choose_device
from kansformer.errors import UserError
from kansformer.train.config import TrainConfig
from kansformer.train.distributed import Ranks
from kansformer.words import number

# What starts from weights, with all of it training, takes smaller steps, and in its first blocks
# smaller ones still: usual values for ViTs, not tried here on large pretrained files.
FINE_TUNING = {"lr": 2e-4, "layer_decay": 0.75}
SMALL_PICTURE = 64  # pixels; larger ones are taken for photographs


def digits() -> dict[str, Any]:
    """scikit-learn's scans of digits, 8x8 pixels, as 16 tokens of overlapping patches.

    `python train.py --data-path digits`, 60 epochs: 98.33 % of 359 test pictures, and with
    seeds 1 and 2 99.16 and 99.16 %, in 92 to 122 s on one core of an Intel Xeon with torch 2.14.
    One core of an AMD EPYC with AVX-512 gave 98.33, 99.16 and 99.44 %, in 86 to 92 s; 2 cores of
    one without it 98.89, 99.16 and 98.89 %, the first in 173 s.
    """
    return {
        "model": "kansformer_micro_patch2_8",
        "stem": "conv",
        "augment": "digits",
        "val_split": 0.1,
        "epochs": 60,
        "batch_size": 64,
        "lr": 2e-3,
        "warmup_epochs": 3.0,
        "mixup": 0.4,
        "cutmix": 0.4,
        "ema": 0.99,
        "eval_metric": "loss",  # 143 pictures tell epochs apart by loss, hardly by accuracy
    }


def fashion_mnist() -> dict[str, Any]:
    """Fashion-MNIST, 28x28 pixels, at 32x32 as 16 overlapping patches.

    `python train.py --data-path /usr/share/datasets/fashion-mnist` (Debian's package
    dataset-fashion-mnist), 25 epochs: 92.19 % on the official 10,000 test pictures with 461,306
    parameters, in 1,694 s on one core of an Intel Xeon with torch 2.14, and 92.18 % in 1,557 s on
    one of an AMD EPYC with AVX-512. With older kernels seeds 0 to 2 gave 92.23, 91.84 and 92.47 %.
    """
    return {
        "model": "kansformer_micro_patch8_32",
        "stem": "conv",
        "augment": "mirror",
        "val_split": 0.1,
        "epochs": 25,
        "batch_size": 128,
        "lr": 2e-3,
        "warmup_epochs": 1.0,
        "label_smoothing": 0.0,
        "random_erasing": 0.1,
        "ema": 0.999,
    }


def mnist() -> dict[str, Any]:
    """MNIST, 28x28 pixels; the settings of Fashion-MNIST without mirroring. Not run yet."""
    return {**fashion_mnist(), "augment": "digits"}


def small_pictures() -> dict[str, Any]:
    """Pictures of up to 64 pixels, such as CIFAR-10's, at 32x32 as 64 overlapping patches.

    `python train.py --data-path cifar10-jpeg`, a folder with 20,000 training and 3,000 validation
    pictures of CIFAR-10 as JPEG files, 40 epochs: 75.03 % of those that validate, by which the
    epoch was chosen too (the 23rd; the last one had 74.03), with torch 2.14 on one core of an Intel
    Xeon; seeds 1 and 2 gave 76.60 and 75.70 % (76.00 and 74.50 % in the last epoch), the latter in
    2,987 s. One core of an AMD EPYC with AVX-512 gave 74.27 % with seed 0 (73.57 % in the last
    epoch), in 3,009 s.
    """
    return {
        "model": "kansformer_micro_patch4_32",
        "stem": "conv",
        "augment": "small",
        "epochs": 40,
        "batch_size": 128,
        "lr": 2e-3,
        "warmup_epochs": 3.0,
        "ema": 0.995,
    }


def sign_digits() -> dict[str, Any]:
    """Photographs of hand signs for 0 to 9, 100x100 pixels, at 32x32 as 16 overlapping patches.

    `python split_data.py --data-path sign-digits --output sign-split --group-regex "IMG_(\\d\\d)"`,
    then `python train.py --data-path sign-split --recipe sign-digits`, 40 epochs: 97.83 % of 230
    test pictures, and with seeds 1 and 2 98.70 and 98.26 %, in 170 to 198 s on one core of an Intel
    Xeon with torch 2.14. One core of an AMD EPYC with AVX-512 gave 98.70, 98.26 and 97.83 %, in 141
    to 157 s; 2 cores of one without it 97.83, 99.57 and 98.70 %, the first in 229 s. 19 of the test
    pictures are of a hand that another part has too.
    """
    return {
        "model": "kansformer_micro_patch8_32",
        "stem": "conv",
        "augment": "signs",
        "epochs": 40,
        "batch_size": 64,
        "lr": 2e-3,
        "warmup_epochs": 5.0,
        "eval_metric": "loss",
    }


def photos() -> dict[str, Any]:
    """A folder of photographs from scratch: KANsformer-Tiny at 224x224. Not run yet.

    What `python train.py --data-path flower_photos --amp bf16` takes on a GPU. On 2 cores 3,000
    pictures would take about 8 hours, by the time of its steps.
    """
    return {
        "model": "kansformer_tiny_patch16_224",
        "augment": "photos",
        "epochs": 100,
        "batch_size": 64,
        "lr": 5e-4,
        "warmup_epochs": 5.0,
        "drop_path_rate": 0.1,
    }


def photos_cpu() -> dict[str, Any]:
    """A folder of photographs from scratch, at 64x64 as 64 tokens of overlapping patches.

    What `python train.py --data-path flower_photos` takes on a CPU; not run on these yet. On the
    hand signs, split as `sign_digits` says, `python train.py --data-path sign-split` gave 96.96 %
    of 230 test pictures, in 681 s for 1,622 to train on, on 2 cores of an AMD EPYC with torch 2.14;
    one run, seed 0.
    """
    return {
        "model": "kansformer_micro_patch8_64",
        "stem": "conv",
        "augment": "photos",
        "epochs": 60,
        "batch_size": 64,
        "lr": 1e-3,
        "warmup_epochs": 5.0,
    }


def cifar10_gpu() -> dict[str, Any]:
    """CIFAR-10 from scratch, at 32x32 as 64 tokens of overlapping patches. Not run yet.

    Meant for a GPU: `python train.py --data-path cifar10 --download --recipe cifar10-gpu --amp
    bf16`. Mixing, erasing and the many epochs are what DeiT (Touvron et al., 2021) needs on data
    this small; on a CPU take the recipe that is chosen without `--recipe`.
    """
    return {
        "model": "kansformer_tiny_patch4_32",
        "stem": "conv",
        "augment": "small",
        "val_split": 0.1,
        "epochs": 200,
        "batch_size": 256,
        "lr": 1e-3,
        "warmup_epochs": 10.0,
        "drop_path_rate": 0.1,
        "mixup": 0.2,
        "cutmix": 1.0,
        "random_erasing": 0.25,
        "ema": 0.999,
    }


def pretrained() -> dict[str, Any]:
    """Photographs, or CIFAR-10 enlarged, from a pretrained ViT of 224x224 pixels. Not run yet.

    Meant for a GPU: `python train.py --data-path flower_photos --weights
    vit_base_patch16_224.safetensors --ffn group-kan --amp bf16`, and the same with `--data-path
    cifar10 --download --recipe pretrained`. The rate and its decay from block to block are
    FINE_TUNING's.
    """
    return {
        "augment": "photos",
        "val_split": 0.1,
        "epochs": 20,
        "batch_size": 64,
        "warmup_epochs": 2.0,
        "drop_path_rate": 0.1,
        "mixup": 0.2,
        "cutmix": 1.0,
    }


RECIPES = {
    recipe.__name__.replace("_", "-"): recipe
    for recipe in (
        digits,
        fashion_mnist,
        mnist,
        small_pictures,
        sign_digits,
        photos,
        photos_cpu,
        cifar10_gpu,
        pretrained,
    )
}


def recipe_for(data: PictureData, *, weights: bool, cpu: bool) -> str:
    """The recipe's name for a data set: its own, or one for pictures of that size.

    A folder's name proves nothing, so only a known data set's own files have a recipe by name.
    """
    if data.train.in_memory and data.name in RECIPES:
        return data.name
    if data.picture_size <= SMALL_PICTURE:
        return "small-pictures"
    if weights:
        return "pretrained"
    return "photos-cpu" if cpu else "photos"


def configure(
    flags: dict[str, Any],
    say: Callable[[str], None] = lambda line: None,
    ranks: Ranks | None = None,
) -> tuple[TrainConfig, PictureData]:
    """The settings of a run and its data: flags go before the recipe, the recipe before defaults.

    Between flags and recipe stand the rates of FINE_TUNING, for a run from weights; their model has
    a stem already, whatever the recipe's is. From weights of ours come the augmentation and, on the
    same pictures, the validation split. Pictures that cannot be read are left out, which is said.

    Args:
        flags: fields of `TrainConfig` that were given, `data_path` among them.
        say: takes each line on pictures that are left out.
        ranks: the first one looks at the pictures before the others do; each has its device.

    Raises:
        UserError: no such data or recipe, a value out of bounds, or flags that need others.
    """
    with nullcontext() if ranks is None else ranks.first_before_others():
        data, findings = usable(
            load_data(
                flags["data_path"],
                flags.get("download", TrainConfig.download),
                flags.get("download_dir", TrainConfig.download_dir),
            )
        )
    for finding in findings:
        say("\n".join(finding.lines()))
    weights = bool(flags.get("weights"))
    device = ranks.device if ranks else choose_device(flags.get("device", TrainConfig.device))
    cpu = device.type == "cpu"
    name = flags.get("recipe") or recipe_for(data, weights=weights, cpu=cpu)
    if name not in RECIPES:
        raise UserError(f"--recipe {name}: unknown; take one of {', '.join(RECIPES)}")
    if name == "pretrained" and not weights:
        raise UserError("--recipe pretrained needs --weights, the file of a ViT to start from")
    all_trains = not flags.get("freeze_layers") or flags.get("unfreeze_every")
    settings = {**RECIPES[name](), **(FINE_TUNING if weights and all_trains else {})}
    if weights:
        settings.pop("stem", None)
    before = training_of(flags["weights"]) if weights else {}
    rule = rule_of_weights(before, flags, data, say)
    if rule is not None:
        settings["val_split"] = rule.share
    policy = settings_of(before).get("augment")
    if isinstance(policy, str) and policy in POLICIES:  # which may mirror pictures, or must not
        settings["augment"] = policy
    config = TrainConfig(**{**settings, **flags, "recipe": name})
    data = data.with_validation(config.val_split, config.seed if rule is None else rule.seed)
    for concern in concerns(data, config.data_path):
        say("\n".join(concern.lines()))
    if config.cache:
        data = replace(data, train=data.train.cached(), val=data.val and data.val.cached())
    return config, data


def rule_of_weights(
    training: dict[str, Any], flags: dict[str, Any], data: PictureData, say: Callable[[str], None]
) -> SplitRule | None:
    """The rule by which a weights file of ours was validated, if that was on these pictures.

    Where pictures that it was trained on may validate, or do so by another --val-split, that is
    said.

    Args:
        training: what the file tells of its training.
    """
    recorded = recorded_split(training)
    if recorded is None:
        return None
    weights = flags["weights"]
    rule, before = recorded.rule, data
    if data.val is None and rule is not None:
        with suppress(UserError):  # too few pictures to split them so
            before = data.with_validation(rule.share, rule.seed)
    if before.val is None or not recorded.is_of(before):
        say(
            f"warning: {weights} was trained on {training.get('data')}; if pictures of its training"
            " validate here, the accuracy is too high"
        )
        return None
    if data.val is not None or rule is None:
        return None
    share = flags.get("val_split", rule.share)
    if share == rule.share or not 0 < share < 1:
        say(f"split   as in the training of {weights}: {share:g} validates, seed {rule.seed}")
        return rule
    labels = data.train.labels
    trained, _ = stratified_split(labels, [1 - rule.share, rule.share], rule.seed)
    _, validating = stratified_split(labels, [1 - share, share], rule.seed)
    leaked = int(np.isin(validating, trained).sum())
    if leaked:
        say(
            f"warning: {leaked} of {number(len(validating), 'validation picture')} were training"
            f" pictures of {weights}, so the accuracy is too high; leave out --val-split"
        )
    return SplitRule(share, rule.seed)
