"""From command line flags to the settings and the data of a run."""

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
from kansformer.train.checks import STEP_SETTINGS
from kansformer.train.config import TrainConfig, flag_name, tuned_parts
from kansformer.train.distributed import Ranks, discard
from kansformer.train.recipes import FINE_TUNING, PART_TUNING, RECIPES
from kansformer.words import number

SMALL_PICTURE = 64  # pixels; larger pictures are taken to be photographs


def configure(
    flags: dict[str, Any],
    log: Callable[[str], None] = discard,
    ranks: Ranks | None = None,
) -> tuple[TrainConfig, PictureData]:
    """The settings of a run, and its data with a validation split.

    Settings come from the flags; else, in a run from weights, from FINE_TUNING and from what the
    weights file records: the augmentation and, for the same pictures, the validation split; else
    from the recipe; else from the defaults. Unreadable pictures are left out with a warning.

    Args:
        flags: the fields of `TrainConfig` that were given, `data_path` among them.
        log: prints a line; called on every rank.
        ranks: where there are several, the first one reads the data before the others do.

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
        log("\n".join(finding.lines()))
    weights = bool(flags.get("weights"))
    device = ranks.device if ranks else choose_device(flags.get("device", TrainConfig.device))
    recipe = flags.get("recipe") or choose_recipe(data, weights=weights, cpu=device.type == "cpu")
    if recipe not in RECIPES:
        raise UserError(f"--recipe {recipe}: unknown; choose one of {', '.join(RECIPES)}")
    if recipe == "pretrained" and not weights:
        raise UserError("--recipe pretrained needs --weights, the file of a ViT to start from")
    settings = RECIPES[recipe]()
    tuned = tuned_parts(
        flags.get("tune", TrainConfig.tune), flags.get("freeze_layers", TrainConfig.freeze_layers)
    )
    if weights and ("all" in tuned or flags.get("unfreeze_every")):
        settings |= FINE_TUNING
    elif weights and tuned != {"head"}:
        settings |= PART_TUNING
    if weights:
        settings.pop("stem", None)  # the weights define the model
    earlier = training_of(flags["weights"]) if weights else {}
    rule = split_rule_of_weights(earlier, flags, data, log)
    if rule is not None:
        settings["val_split"] = rule.share
    policy = settings_of(earlier).get("augment")
    if isinstance(policy, str) and policy in POLICIES:  # it decides whether pictures are mirrored
        settings["augment"] = policy
    config = TrainConfig(**{**settings, **flags, "recipe": recipe})
    if config.head_only:
        for name in [name for name in STEP_SETTINGS if name in flags]:
            log(f"warning: {flag_name(name)} has no effect: --tune head takes no training steps")
    data = data.with_validation(config.val_split, config.seed if rule is None else rule.seed)
    for concern in concerns(data, config.data_path):
        log("\n".join(concern.lines()))
    if config.cache:
        data = replace(data, train=data.train.cached(), val=data.val and data.val.cached())
    return config, data


def choose_recipe(data: PictureData, *, weights: bool, cpu: bool) -> str:
    """The name of the default recipe: that of a known data set, or one for pictures of that size.

    A folder of pictures never gets the recipe of a data set by its name, since it may hold
    anything.

    Args:
        weights: whether the run starts from weights.
        cpu: whether it trains on a CPU.
    """
    if data.train.in_memory and data.name in RECIPES:
        return data.name
    if data.picture_size <= SMALL_PICTURE:
        return "small-pictures"
    if weights:
        return "pretrained"
    return "photos-cpu" if cpu else "photos"


def split_rule_of_weights(
    training: dict[str, Any], flags: dict[str, Any], data: PictureData, log: Callable[[str], None]
) -> SplitRule | None:
    """The validation split with which a weights file was trained, if these are the same pictures.

    Warns where pictures that the weights were trained on may be in this run's validation set: the
    pictures are others, or --val-split differs.

    Args:
        training: what the weights file records of its training.
    """
    recorded = recorded_split(training)
    if recorded is None:
        return None
    weights = flags["weights"]
    rule, earlier = recorded.rule, data
    if data.val is None and rule is not None:
        with suppress(UserError):  # too few pictures for that split
            earlier = data.with_validation(rule.share, rule.seed)
    if earlier.val is None or not recorded.is_of(earlier):
        log(
            f"warning: {weights} was trained on {training.get('data')}; if its training pictures"
            " are in this validation set, the accuracy is too high"
        )
        return None
    if data.val is not None or rule is None:
        return None
    share = flags.get("val_split", rule.share)
    if share == rule.share or not 0 < share < 1:
        log(f"split   as in the training of {weights}: --val-split {share:g} with seed {rule.seed}")
        return rule
    labels = data.train.labels
    trained_on, _ = stratified_split(labels, [1 - rule.share, rule.share], rule.seed)
    _, validation = stratified_split(labels, [1 - share, share], rule.seed)
    leaked = int(np.isin(validation, trained_on).sum())
    if leaked:
        log(
            f"warning: {leaked} of {number(len(validation), 'validation picture')} were training"
            f" pictures of {weights}, so the accuracy is too high; leave out --val-split"
        )
    return SplitRule(share, rule.seed)
