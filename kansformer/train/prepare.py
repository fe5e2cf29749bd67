"""Prepares a training run: builds all its objects from the settings, or restores a saved state."""

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch.utils.data import DataLoader

from kansformer.data import (
    PictureData,
    PictureDataset,
    Pictures,
    Preprocessing,
    TrainingSampler,
    make_loader,
    training_loader,
)
from kansformer.data.augment import least_side, make_augmentation
from kansformer.device import usable_cores
from kansformer.train.build import build_model, distill_mlps, twin_sizes
from kansformer.train.checks import check_grid_updates, check_settings, reset_unused_settings
from kansformer.train.config import TrainConfig
from kansformer.train.distributed import Ranks, restart_count, shard
from kansformer.train.features import Extractor, join, poolings
from kansformer.train.grids import calibrate, first_pictures
from kansformer.train.head import HeadFit, fit_head, fits_head
from kansformer.train.loss import make_criterion, make_mix
from kansformer.train.optimizer import make_scaler
from kansformer.train.picture_size import chooses_size, size_for_machine
from kansformer.train.plan import check_state_fits
from kansformer.train.run import Run, reset_optimizer
from kansformer.train.run_folder import RunFolder
from kansformer.train.state import restore, with_choices
from kansformer.train.summary import describe_model
from kansformer.words import number
from models.twins import count, count_parameters
from models.vit_model import VisionTransformer


def prepare(
    config: TrainConfig,
    data: PictureData,
    ranks: Ranks,
    log: Callable[[str], None],
    project_root: Path | None,
) -> Run:
    """Builds a fresh run, or restores one from its saved state.

    Writes no files, except for features of the pictures that the head is fitted to.

    Args:
        data: with a validation split.
        log: prints a line; called on every rank.
        project_root: a folder that also gets class_indices.json.

    Raises:
        UserError: settings, weights or pictures that cannot be used.
    """
    assert data.val is not None, "the data needs a validation split"
    folder, resume = choose_folder(config, data)
    ranks.barrier()  # every rank looks at the folder before the first one writes to it
    state = folder.load_state(log) if resume else None
    if state is not None:
        config = with_choices(config, state["settings"])

    torch.manual_seed(config.seed)
    model, preprocessing, loaded = build_model(config, data)
    if state is None and chooses_size(config, ranks):
        size, reason = size_for_machine(config, model.config, ranks)
        if size < model.config.img_size:
            log(f"size    {reason}")
            config = replace(config, img_size=size)
            torch.manual_seed(config.seed)
            model, preprocessing, loaded = build_model(config, data)
    preprocessing = replace(preprocessing, levels=data.train.levels)
    check_settings(config, data, model, loaded, ranks)
    check_state_fits(config, model, ranks)
    config = reset_unused_settings(config, model, ranks, log)
    criterion = make_criterion(config, data, preprocessing, ranks.device)
    twin = twin_sizes(config, model.config)
    folder.check_space(count_parameters(model), config.ema > 0)
    model.to(ranks.device)

    train_set = PictureDataset(
        data.train,
        make_augmentation(config.augment, preprocessing, config.random_erasing),
        config.seed,
        skip_broken=True,
        at_least=least_side(config.augment, preprocessing),
    )
    sampler = TrainingSampler(
        data.train.labels,
        config.batch_size,
        accumulate=config.accumulate,
        rank=ranks.rank,
        world=ranks.world,
        seed=config.seed,
        balanced=config.balanced_sampler,
    )
    train_loader = training_loader(
        train_set,
        sampler,
        workers=choose_workers(config, data.train),
        pin=ranks.device.type == "cuda",
    )
    val_loader = evaluation_loader(data.val, preprocessing, config, ranks)

    log_data_and_model(log, data, model, twin)
    load_report: dict[str, Any] | None = None
    if loaded:
        log(f"weights {loaded}")
        distilled = None
        if loaded.left_out_mlps and config.distill and not resume:
            all_val = evaluation_loader(data.val, preprocessing, config,
                                        replace(ranks, rank=0, world=1))  # fmt: skip
            distilled = distill_mlps(config, data, model, loaded, train_loader, all_val)
            log(f"fitted  {distilled['text']}")
        load_report = {**loaded.to_dict(), "fitted": distilled}
    if (config.calibrate_grid or config.update_grid_every) and not resume:
        images = first_pictures(train_loader, ranks.device)
        if config.calibrate_grid:
            calibrate(model, images)
        check_grid_updates(config, model, images)
    head = None
    if loaded and fits_head(config, loaded) and not resume:
        features = Extractor(
            model, preprocessing, folder.path, ranks, choose_workers(config, data.train), log
        )
        head = fit_head_first(config, data, features)
        config = replace(config, pool=model.config.pool)
        log(f"head    {head}")
        load_report = {**(load_report or {}), "head": head.to_dict()}

    ema = None
    if config.ema:
        ema = ModelEmaV3(model, config.ema, use_warmup=True, exclude_buffers=True)
    if config.shard and ranks.world > 1:
        shard(model)
        if ema is not None:
            shard(ema.module)
    if config.compile:
        model.compile()
    run = Run(
        config=config,
        data=data,
        ranks=ranks,
        log=log,
        folder=folder,
        project_root=project_root,
        model=model,
        preprocessing=preprocessing,
        load_report=load_report,
        ema=ema,
        scaler=make_scaler(config, ranks.device),
        criterion=criterion,
        mix=make_mix(config, len(data.class_names)),
        train_set=train_set,
        sampler=sampler,
        train_loader=train_loader,
        val_loader=val_loader,
        resumed=resume,
    )
    reset_optimizer(run)
    if head is not None and config.head_only:  # instead of training steps
        run.progress.loss, run.progress.pictures = head.train_loss * head.pictures, head.pictures
        run.progress.seconds = run.progress.total_seconds = head.seconds
    devices = f"{ranks.device}{f' x {ranks.world}' if ranks.world > 1 else ''}"
    log(
        f"run     recipe {config.recipe}, augmentation {config.augment},"
        f" {number(config.epochs, 'epoch')} on {devices}, output in {folder.path}"
    )
    if state is not None:
        restore(run, state)
        step = f", step {run.progress.step}" if run.progress.step else ""
        log(f"resumed after epoch {run.progress.epoch}{step}")
    return run


def choose_folder(config: TrainConfig, data: PictureData) -> tuple[RunFolder, bool]:
    """The output folder, checked, and whether the run in it is to be resumed.

    Ranks that torchrun has restarted resume without --resume.
    """
    resume, overwrite = config.resume, config.overwrite
    origin = config.model if config.weights is None else "finetuned"
    output = Path(config.output or Path("weights") / f"{data.name}-{origin}")
    if restart_count():
        resume, overwrite = resume or (output / "last.pt").is_file(), True
    return RunFolder(output, Path(config.data_path), resume=resume, overwrite=overwrite), resume


def fit_head_first(config: TrainConfig, data: PictureData, features: Extractor) -> HeadFit:
    """Fits a model's head to the features of the training pictures; all ranks must call it.

    Raises:
        UserError: there are too few pictures.
    """
    assert data.val is not None
    started = time.monotonic()
    views = range(1, config.feature_views)
    train = [features(data.train)]
    train += [features(data.train, config.augment, view, config.seed) for view in views]
    val = features(data.val)
    pools = [config.pool] if config.pool else list(poolings(features.model))
    return fit_head(
        features.model, join(train), val, pools,
        balanced=config.class_weights or config.balanced_sampler, seed=config.seed, started=started,
    )  # fmt: skip


def choose_workers(config: TrainConfig, pictures: Pictures) -> int:
    """Number of data loading processes: --workers, else one per core of this rank, at most 8.

    Pictures in memory need none.
    """
    if config.workers is not None:
        return config.workers
    if pictures.in_memory:
        return 0
    return min(usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)), 8)


def evaluation_loader(
    pictures: Pictures, preprocessing: Preprocessing, config: TrainConfig, ranks: Ranks
) -> DataLoader[Any]:
    """Batches for evaluation: this rank's share of the pictures, without augmentation."""
    return make_loader(
        PictureDataset(pictures, preprocessing, skip_broken=True),
        config.batch_size,
        rank=ranks.rank,
        world=ranks.world,
        workers=choose_workers(config, pictures),
        pin=ranks.device.type == "cuda",
    )


def log_data_and_model(
    log: Callable[[str], None], data: PictureData, model: VisionTransformer, twin: dict[str, int]
) -> None:
    """Prints the sizes of the data set, of the model and of its MLP twin."""
    splits = {"training": data.train, "validation": data.val or (), "test": data.test or ()}
    counts = [f"{len(split):,} {name}" for name, split in splits.items() if len(split)]
    noun = "picture" if counts[-1].startswith("1 ") else "pictures"
    log(
        f"data    {data.name}: {number(len(data.class_names), 'class')}, {', '.join(counts)} {noun}"
    )
    log(f"model   {describe_model(model)}")
    if model.config.ffn != "mlp":
        log(
            f"twin    {twin['parameters']:,} parameters with MLPs,"
            f" {twin['flops_per_image']:,} FLOPs per picture against"
            f" {count(model.config, 'flops'):,}"
        )
