"""Every setting of a training run, as a dataclass and as command line flags.

The help text of a setting is in its field's metadata. A value comes from the command line, else
from the recipe, else from the default here.
"""

import argparse
import math
from dataclasses import MISSING, asdict, dataclass, field, fields
from itertools import pairwise
from typing import Any, get_args, get_type_hints

from kansformer.data.augment import POLICIES
from kansformer.data.preprocessing import STATISTICS
from kansformer.errors import UserError
from kansformer.words import number
from models.kan import INITS
from models.vit_model import BASE_ACTIVATIONS, FFNS, HEADS, POOLS, STEMS

PATHS = ("data_path", "output", "weights", "teacher", "download_dir")
TUNE = ("all", "head", "splines", "norms", "biases")  # parts of a model that --tune trains


def _flag(default: Any, help: str, **options: Any) -> Any:
    return field(default=default, metadata={"help": help, **options})


def _required(help: str) -> Any:
    return field(metadata={"help": help})


def flag_name(name: str) -> str:
    """The command line flag of a field: "--batch-size" for batch_size."""
    return f"--{name.replace('_', '-')}"


def _base_activation(text: str) -> str | tuple[str, str]:
    names = tuple(text.split(","))
    if len(names) > 2 or not set(names) <= set(BASE_ACTIVATIONS):
        raise argparse.ArgumentTypeError(
            f"{text!r}: give one or two of {', '.join(BASE_ACTIVATIONS)}"
        )
    return names[0] if len(names) == 1 else (names[0], names[1])


def _refinements(text: str) -> tuple[tuple[int, int], ...]:
    try:
        pairs = [tuple(int(number) for number in pair.split(":")) for pair in text.split(",")]
        return tuple((epoch, size) for epoch, size in pairs)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r}: give EPOCH:SIZE, or several separated by commas, such as 10:10,20:20"
        ) from None


def _tune(text: str) -> str:
    parts = text.split(",")
    unknown = [part for part in parts if part not in TUNE]
    if unknown:
        raise argparse.ArgumentTypeError(f"{text!r}: give one or several of {', '.join(TUNE)}")
    return ",".join(part for part in TUNE if part in parts)


def tuned_parts(tune: str, freeze_layers: bool) -> frozenset[str]:
    """The parts of the model that --tune and --freeze-layers name; {"all"} includes the others."""
    parts = frozenset({"head"} if freeze_layers else tune.split(","))
    return frozenset({"all"}) if "all" in parts else parts


def _kan_hidden(text: str) -> int | str:
    if text == "full":
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number or full") from None


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a run. Fields of the model that are None keep what the model's name implies.

    Raises:
        UserError: a value out of bounds, or settings that contradict each other.
    """

    data_path: str = _required("a folder per class, or a built-in data set such as digits")
    output: str | None = _flag(
        None, "folder for the results (default: in weights/, named after data and model)"
    )
    overwrite: bool = _flag(False, "replace an earlier run in the output folder")
    resume: bool = _flag(False, "continue the run in the output folder")
    recipe: str | None = _flag(None, "preset of settings (default: chosen by data and device)")
    download: bool = _flag(False, "download a built-in data set that is missing")
    download_dir: str = _flag("data", "folder of the built-in data sets")
    val_split: float = _flag(0.2, "share of the pictures to validate on, if there is no val/")

    model: str = _flag("kansformer_tiny_patch16_224", "model name, as for create_model")
    weights: str | None = _flag(
        None, "weights file of any plain ViT to start from, which also defines the model"
    )
    preprocessing: str | None = _flag(
        None,
        "mean and std of pixel values (default: those of --weights, else half: 0.5)",
        choices=tuple(STATISTICS),
    )
    distill: bool = _flag(
        True, "before training, fit a narrow KAN to the MLPs of --weights on the training pictures"
    )
    distill_steps: int = _flag(1500, "steps of that fit, per block")
    tune: str = _flag(
        "all",
        "with --weights: what trains, one or several of all, head, splines, norms, biases",
        type=_tune,
        metavar="PART[,...]",
    )
    freeze_layers: bool = _flag(False, "the same as --tune head")
    head_first: bool = _flag(
        True, "with --weights: fit a fresh head to the model's features before training"
    )
    feature_views: int = _flag(
        1, "views of each picture whose features the head is fitted to: as it is, and N-1 augmented"
    )
    save_delta: bool = _flag(
        False, "also save what differs from --weights, as best-delta.safetensors"
    )
    unfreeze_every: int = _flag(
        0,
        "with --tune head: unfreeze one more block, from the last, every N epochs; 0: never",
    )
    layer_decay: float = _flag(
        1.0, "factor on the learning rate from block to block, towards the input"
    )
    ffn: str | None = _flag(None, "feed-forward block", choices=FFNS)
    head: str | None = _flag(None, "classifier", choices=HEADS)
    pool: str | None = _flag(
        None,
        "what the head sees: the class token, the mean of the patches, or both (default: with"
        " --weights and a fresh head, whichever classifies the validation pictures best)",
        choices=POOLS,
    )
    kan_hidden: int | str | None = _flag(
        None, "hidden width of KAN blocks, or full", type=_kan_hidden, metavar="N"
    )
    mlp_ratio: float | None = _flag(
        None, "hidden width of mlp and group-kan blocks, as a multiple of the embedding width"
    )
    match: str = _flag(
        "none",
        "choose the hidden width that gives the model as many params or flops as its MLP twin",
        choices=("params", "flops", "none"),
    )
    groups: int | None = _flag(None, "splines per layer of group-kan blocks")
    grid_size: int | None = _flag(None, "intervals in each spline's grid")
    spline_order: int | None = _flag(None, "degree of the splines")
    grid_range: tuple[float, float] | None = _flag(
        None, "ends of the grids", type=float, nargs=2, metavar=("LOW", "HIGH")
    )
    kan_norm: bool | None = _flag(None, "a LayerNorm between the two layers of a KAN block")
    kan_init: str | None = _flag(None, "initialization of KAN layers", choices=INITS)
    base_activation: str | tuple[str, str] | None = _flag(
        None,
        "base activation of KAN layers, or two, A,B, for the two layers of a block",
        type=_base_activation,
        metavar="A[,B]",
    )
    img_size: int | None = _flag(None, "input size of the model, pixels")
    patch_size: int | None = _flag(None, "patch size, pixels")
    stem: str | None = _flag(None, "how patches become tokens", choices=STEMS)
    num_heads: int | None = _flag(None, "attention heads; some --weights files do not record them")
    in_chans: int | None = _flag(None, "channels, 1 or 3 (default: 1 for grey data sets, else 3)")
    drop_rate: float | None = _flag(None, "dropout")
    drop_path_rate: float | None = _flag(None, "stochastic depth")

    calibrate_grid: bool = _flag(False, "fit the grids to the first pictures before training")
    update_grid_every: int = _flag(0, "fit the grids to the activations every N epochs; 0: never")
    update_grid_until: int = _flag(10, "last epoch before which they are updated")
    refine_grid: tuple[tuple[int, int], ...] | None = _flag(
        None,
        "epochs after which grids are refined, with their new sizes: 10:10,20:20",
        type=_refinements,
        metavar="EPOCH:SIZE[,...]",
    )
    spline_penalty: float = _flag(0.0, "weight of the splines' regularization in the loss")

    epochs: int = _flag(30, "passes over the training pictures")
    patience: int = _flag(0, "stop after N epochs without improvement; 0: never")
    time_budget: float | None = _flag(None, "stop training after N minutes")
    batch_size: int = _flag(64, "pictures per batch, on each device")
    accumulate: int = _flag(1, "batches per optimizer step (gradient accumulation)")
    auto_batch: bool = _flag(
        False,
        "try steps before training, and split batches that do not fit into memory; where a device"
        " tells its free memory, that is used in any case",
    )
    lr: float = _flag(1e-3, "highest learning rate")
    find_lr: bool = _flag(False, "choose --lr by trial steps at rising rates before training")
    lrf: float = _flag(0.01, "final learning rate, as a fraction of --lr")
    warmup_epochs: float = _flag(2.0, "epochs of linear warm-up")
    weight_decay: float = _flag(0.05, "AdamW's weight decay of weight matrices")
    spline_lr: float | None = _flag(
        None,
        "learning rate of splines, as a multiple of --lr (default: 10 for group-kan and 3 for kan"
        " where they start at zero beside an MLP, else 1)",
    )
    spline_decay: float = _flag(0.0, "AdamW's weight decay of splines")
    clip_grad: float = _flag(1.0, "maximum gradient norm, of splines separately; 0: none")
    label_smoothing: float = _flag(0.1, "share of the target spread over all classes")
    augment: str = _flag("photos", "augmentation policy", choices=tuple(POLICIES))
    mixup: float = _flag(0.0, "mixup alpha; 0 for none")
    cutmix: float = _flag(0.0, "cutmix alpha; 0 for none")
    random_erasing: float = _flag(0.0, "probability that part of a picture is erased")
    class_weights: bool = _flag(False, "weight the loss so that all classes count equally")
    balanced_sampler: bool = _flag(False, "draw all classes equally often")
    eval_metric: str = _flag(
        "acc1",
        "validation metric that decides the best epoch: accuracy, or loss, which is less noisy on"
        " few pictures",
        choices=("acc1", "loss"),
    )
    ema: float = _flag(0.0, "decay of a moving average of the weights, saved instead; 0: none")
    teacher: str | None = _flag(None, "weights file of a KANsformer to distill from")
    teacher_weight: float = _flag(0.5, "share of the distillation term in the loss")
    teacher_temperature: float = _flag(2.0, "softmax temperature of the distillation term")

    seed: int = _flag(0, "random seed of weights, split, order and augmentation")
    device: str = _flag("auto", "auto, cpu, cuda, mps, ...")
    amp: str = _flag(
        "none", "mixed precision in training (autocast)", choices=("none", "bf16", "fp16")
    )
    compile: bool = _flag(False, "compile the model with torch.compile")
    shard: bool = _flag(False, "under torchrun, shard the model over the ranks (FSDP2)")
    cache: bool = _flag(False, "keep the decoded pictures in memory")
    workers: int | None = _flag(None, "data loading processes (default: by the number of cores)")
    max_steps: int | None = _flag(None, "end every epoch after N steps, for a trial run")
    report: bool = _flag(True, "at the end, write report.html, and functions to TensorBoard")
    save_minutes: float = _flag(10.0, "minutes between saved states within an epoch")

    def __post_init__(self) -> None:
        self._check_values()
        self._check_epochs()
        self._check_combinations()

    def _check_values(self) -> None:
        """Each setting by itself."""
        for setting in fields(self):
            flag, value = flag_name(setting.name), getattr(self, setting.name)
            choices = setting.metadata.get("choices")
            if choices and value is not None and value not in choices:
                raise UserError(f"{flag} must be one of {', '.join(choices)}, not {value}")
            numbers = value if isinstance(value, tuple) else (value,)
            if any(isinstance(part, float) and not math.isfinite(part) for part in numbers):
                raise UserError(f"{flag} must be finite, not {value}")
        for name, low, high in (
            ("epochs", 1, None), ("batch_size", 1, None), ("max_steps", 1, None),
            ("workers", 0, None), ("lr", 0, None), ("lrf", 0, 1), ("warmup_epochs", 0, None),
            ("weight_decay", 0, None), ("clip_grad", 0, None), ("label_smoothing", 0, 1),
            ("mixup", 0, None), ("cutmix", 0, None), ("unfreeze_every", 0, None),
            ("distill_steps", 1, None), ("feature_views", 1, None),
            ("layer_decay", 0, 1), ("spline_lr", 0, None), ("spline_decay", 0, None),
            ("accumulate", 1, None), ("patience", 0, None), ("seed", 0, 2**63 - 1),
            ("save_minutes", 0, None), ("random_erasing", 0, 1), ("ema", 0, 1),
            ("teacher_weight", 0, 1), ("spline_penalty", 0, None), ("update_grid_every", 0, None),
            ("update_grid_until", 1, None),
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not (low <= value and (high is None or value <= high)):
                bounds = f"at least {low}" + ("" if high is None else f" and at most {high}")
                raise UserError(f"{flag_name(name)} must be {bounds}, not {value}")
        for name in ("teacher_temperature", "time_budget"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UserError(f"{flag_name(name)} must be above 0, not {value}")
        for part in self.tune.split(","):
            if part not in TUNE:
                raise UserError(f"--tune must be one or several of {', '.join(TUNE)}, not {part}")
        if self.in_chans not in (None, 1, 3):
            raise UserError(f"--in-chans must be 1 or 3, not {self.in_chans}")

    def _check_combinations(self) -> None:
        """Settings that need or exclude each other."""
        if self.tuned != {"all"} and self.weights is None:
            raise UserError(f"{self.tune_flag} needs --weights: frozen layers would stay random")
        if self.freeze_layers and self.tune not in ("all", "head"):
            raise UserError(
                f"--freeze-layers is --tune head, which is not --tune {self.tune}; leave one out"
            )
        if self.save_delta and self.weights is None:
            raise UserError("--save-delta needs --weights, from which the difference is taken")
        if self.unfreeze_every and self.tuned != {"head"}:
            raise UserError(
                "--unfreeze-every needs --tune head, the same as --freeze-layers, not --tune"
                f" {self.tune}"
            )
        if self.shard and (self.amp == "fp16" or self.refine_grid or self.update_grid_every):
            raise UserError(
                "--shard needs fixed grids and --amp bf16 or none; leave out --refine-grid,"
                " --update-grid-every and --amp fp16"
            )
        if self.match != "none" and self.kan_hidden is not None:
            raise UserError("--match chooses the hidden width; leave out --kan-hidden")

    def _check_epochs(self) -> None:
        """Settings that name epochs, against the length of the run."""
        length = number(self.epochs, "epoch")
        for name in ("unfreeze_every", "update_grid_every"):
            if getattr(self, name) >= self.epochs:
                raise UserError(
                    f"{flag_name(name)} {getattr(self, name)}: the run has {length}, so it"
                    " would have no effect; lower it, or raise --epochs"
                )
        if self.update_grid_every > self.update_grid_until:
            raise UserError(
                f"--update-grid-every {self.update_grid_every} is more than --update-grid-until"
                f" {self.update_grid_until}, so grids would never be updated; lower it"
            )
        pairs = sorted(self.refine_grid or ())
        for epoch, size in pairs:
            if not 0 < epoch < self.epochs:
                raise UserError(
                    f"--refine-grid {epoch}:{size}: there is no epoch after epoch {epoch} of a run"
                    f" of {length}; give an epoch of at least 1 and below --epochs"
                )
        for (before, coarse), (after, fine) in pairwise(pairs):
            if before == after or coarse >= fine:
                raise UserError(
                    f"--refine-grid {before}:{coarse},{after}:{fine}: epochs and sizes must"
                    " increase together"
                )

    @property
    def tuned(self) -> frozenset[str]:
        """The parts of the model that train, of `TUNE`; "all" includes every other part."""
        return tuned_parts(self.tune, self.freeze_layers)

    @property
    def tune_flag(self) -> str:
        """The flag that chose the parts that train."""
        return "--freeze-layers" if self.freeze_layers else f"--tune {self.tune}"

    @property
    def head_only(self) -> bool:
        """Whether the head alone is fitted to features, so that there are no training steps."""
        return self.tuned == {"head"} and self.head_first and not self.unfreeze_every

    def model_overrides(self) -> dict[str, Any]:
        """The fields of `ViTConfig` that were set."""
        names = (
            "ffn", "head", "pool", "kan_hidden", "mlp_ratio", "groups", "grid_size", "spline_order",
            "grid_range", "kan_norm", "kan_init", "base_activation",
            "img_size", "patch_size", "stem", "num_heads", "in_chans",
            "drop_rate", "drop_path_rate",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def to_dict(self) -> dict[str, Any]:
        """Plain types, as in config.json."""
        return asdict(self)

    def public(self) -> dict[str, Any]:
        """The same without paths, which are private: for files that users share."""
        return {key: value for key, value in self.to_dict().items() if key not in PATHS}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds a flag for every field. Flags that are not given leave no attribute in the namespace."""
    types = get_type_hints(TrainConfig)
    for setting in fields(TrainConfig):
        options = dict(setting.metadata)
        if setting.default not in (MISSING, None) and "default" not in options["help"]:
            options["help"] += f" (default: the recipe's, else {setting.default})"
        kinds = [kind for kind in get_args(types[setting.name]) if kind is not type(None)]
        kind = kinds[0] if kinds else types[setting.name]
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options.setdefault("type", kind)
            options.setdefault("metavar", None if "choices" in options else kind.__name__.upper())
        parser.add_argument(
            flag_name(setting.name),
            default=argparse.SUPPRESS,
            required=setting.default is MISSING,
            **options,
        )
