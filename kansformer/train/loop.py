"""One training run, from settings and data to the files in its output folder.

Read it from top to bottom: `train` is the whole run, `train_epoch` and `finish_epoch` are one
epoch, `finish` is the end. `Run` holds what they work with; `step.py` computes one step.
"""

import copy
import math
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from kansformer.checkpoint import load_model, save_model
from kansformer.data import PictureData, Preprocessing
from kansformer.data.dataset import NO_LABEL
from kansformer.device import tf32_products
from kansformer.errors import JobFailed, Stopped, one_line
from kansformer.evaluate import evaluate
from kansformer.figures import font_hint
from kansformer.progress import progress_bar
from kansformer.report import write_report
from kansformer.signals import StopSignals
from kansformer.train.config import TrainConfig
from kansformer.train.distributed import (
    discard,
    full_state,
    is_sharded,
    load_full_state,
    process_group,
)
from kansformer.train.find_lr import find_learning_rate
from kansformer.train.grids import change_grids, first_pictures, grid_changes
from kansformer.train.optimizer import learning_rate
from kansformer.train.plan import Plan, make_plan
from kansformer.train.prepare import evaluation_loader, prepare
from kansformer.train.run import Run, reset_optimizer
from kansformer.train.state import keep_initial_state, restore, save, start_folder
from kansformer.train.step import NOT_FINITE, TAKEN, compute_gradient, ready_model, update_weights
from kansformer.train.summary import summarize
from kansformer.words import command, duration, number
from models.vit_model import VisionTransformer

BAD_STEPS = 3  # consecutive ones after which the last good state is restored
RESTORES = 3  # after which a run fails
TIME_IS_UP = 1  # a request to stop, as are the numbers of SIGINT and SIGTERM, which are larger


def train(
    config: TrainConfig,
    data: PictureData,
    log: Callable[[str], None] = print,
    project_root: Path | None = None,
) -> dict[str, Any]:
    """Trains a model and keeps the weights of the best epoch; see `RunFolder` for the files.

    Under torchrun every rank calls this; only the first one prints and writes.

    Args:
        config: the settings, as `configure` returns them.
        data: pictures with a validation split.
        log: prints a line about the run.
        project_root: a folder that also gets class_indices.json.

    Returns:
        The contents of summary.json.

    Raises:
        UserError: settings, weights or pictures that cannot be used.
        JobFailed: a step does not fit into the memory, or loss or gradient is not finite, even at
            lower learning rates.
        Stopped: by a signal; the state is saved.
    """
    started = time.monotonic()
    with process_group(config.device) as ranks, tf32_products(ranks.device):
        run = prepare(config, data, ranks, log if ranks.is_first else discard, project_root)
        plan = make_plan(run)
        choose_learning_rate(run)
        keep_initial_state(run)
        record_head(run)
        with StopSignals() as signals:
            while not run.is_done:
                if config.head_only or train_epoch(run, plan, signals):
                    finish_epoch(run, plan, signals)
            log_early_stop(run)
            summary = finish(run, plan, signals)
        if config.report and run.ranks.is_first:  # without StopSignals: Ctrl-C interrupts it
            create_report(run)
        run.log(
            f"done in {time.monotonic() - started:.0f} s, {summary['seconds']:.0f} s of it epochs"
            f" (forecast: {plan.seconds:.0f} s); all files are in {run.folder.path}"
        )
        best = shlex.quote(str(run.folder.best))
        run.log(f"next: {command('predict')} PICTURE --weights {best}")
    return summary


def choose_learning_rate(run: Run) -> None:
    """Chooses the learning rate of a fresh run by trial steps (--find-lr)."""
    if run.config.find_lr and not run.resumed:
        run.config = replace(run.config, lr=find_learning_rate(run))
        reset_optimizer(run)
        run.log(f"rate    --find-lr chose {run.config.lr:.1e}")


def record_head(run: Run) -> None:
    """Counts the model with the head that was fitted first as epoch 0, if it is to be trained on.

    So its weights are kept if fine-tuning gives no better ones.
    """
    fit = (run.load_report or {}).get("head")
    if fit is None or run.resumed or run.config.head_only:
        return
    row = {
        "epoch": 0,
        "train_loss": fit["train_loss"],
        "val_loss": fit["val_loss"],
        "val_acc1": fit["val_acc1"],
        "lr": 0.0,
        "images_per_second": fit["pictures"] / fit["seconds"],
        "waiting": 0.0,
        "seconds": fit["seconds"],
    }
    run.progress.history.append(row)
    run.progress.total_seconds += fit["seconds"]
    save_best(run, {"epoch": 0, "loss": fit["val_loss"], "acc1": fit["val_acc1"]})
    save(run)
    if run.ranks.is_first:
        run.folder.write_history(run.progress.history, best=0)


def train_epoch(run: Run, plan: Plan, signals: StopSignals) -> bool:
    """Takes the remaining steps of the current epoch.

    Returns:
        True at the end of the epoch or of --time-budget, False if an earlier state was restored.

    Raises:
        Stopped: by a signal; the state is saved.
    """
    config, progress = run.config, run.progress
    start_epoch(run)
    run.sampler.epoch, run.sampler.first_step = progress.epoch, progress.step
    loader = iter(run.train_loader)
    saved = clock = time.monotonic()
    bar = progress_bar(
        range(progress.step, run.steps), f"epoch {progress.epoch + 1}/{config.epochs}", run.steps,
        initial=progress.step, shown=run.ranks.shows_bars,
    )  # fmt: skip
    for step in bar:
        batches = list(islice(loader, config.accumulate))
        progress.waited += time.monotonic() - clock
        losses, norm, count = compute_gradient(run, step, batches)
        # One transfer from the device per step brings what must be known before the weights change
        # and what all ranks must agree on. The clock is that of the first rank.
        stop = signals.received or TIME_IS_UP * run.is_out_of_time
        save_is_due = time.monotonic() - saved > 60 * config.save_minutes
        seconds, clock = time.monotonic() - clock, time.monotonic()
        extra = losses.new_tensor([count, stop, save_is_due, seconds])
        rows = run.ranks.gather(torch.stack([losses, norm, *extra]))
        loss, norm_value = sum(row[0] for row in rows), rows[0][1]
        pictures = int(sum(row[2] for row in rows))
        stop = int(max(row[3] for row in rows))
        save_is_due, seconds = bool(rows[0][4]), rows[0][5]

        progress.seconds += seconds
        progress.total_seconds += seconds
        outcome = update_weights(run, loss, norm_value)
        if outcome == TAKEN:
            if run.ema is not None:
                run.ema.update(run.model, step=progress.epoch * run.steps + step + 1)
            progress.bad_steps = 0
            progress.loss += loss
            progress.pictures += pictures
        elif outcome == NOT_FINITE:
            progress.bad_steps += 1
            log_bad_step(run, step, batches, loss, norm_value)
            if progress.bad_steps == BAD_STEPS:
                recover(run)
                return False
        progress.step = step + 1
        mean_loss = progress.loss / max(progress.pictures, 1)
        left = duration(plan.time_left(progress))
        bar.set_postfix(loss=f"{mean_loss:.4f}", left=left, refresh=False)
        if stop > TIME_IS_UP:
            save_and_stop(run, stop)
        if stop == TIME_IS_UP:
            break
        if save_is_due:
            save(run)
            saved = time.monotonic()
    return True


def start_epoch(run: Run) -> None:
    """Makes the grid changes that are due, and readies the model for training."""
    config, epoch = run.config, run.progress.epoch
    changed = False
    if run.progress.step == 0 and any(grid_changes(config, epoch)):
        run.sampler.epoch, run.sampler.first_step = epoch, 0
        images = first_pictures(run.train_loader, run.ranks.device)
        ema_model = None if run.ema is None else run.ema.module
        done = change_grids(config, epoch, run.model, ema_model, run.optimizer, images)
        if done:
            run.log(f"grids   {done}")
            changed = True
    ready_model(run, changed)


def log_bad_step(
    run: Run, step: int, batches: list[tuple[Tensor, Tensor]], loss: float, norm: float
) -> None:
    """Prints a skipped step, with the pictures that may be the cause.

    Args:
        batches: of this rank; the first rank also prints for steps without a bad picture.
    """
    pictures, keys = run.data.train, run.sampler.batches(step)
    bad = [
        pictures.name(index)
        for batch_keys, (images, _) in zip(keys, batches, strict=True)
        for (_, index), image in zip(batch_keys, images, strict=True)
        if not image.isfinite().all()
    ]
    names = bad or [pictures.name(index) for _, index in keys[0][:3]]
    which = "pictures that are not finite" if bad else "its first pictures"
    line = (
        f"skipped step {step + 1} of epoch {run.progress.epoch + 1}: loss {loss}, gradient norm"
        f" {norm}, rate {learning_rate(run.optimizer):.2e}; {which}: {', '.join(names)}"
    )
    if run.ranks.is_first:
        run.log(line)
    elif bad:  # only this rank has these pictures
        sys.stderr.write(line + "\n")


def recover(run: Run) -> None:
    """Restores the last good state and divides the learning rate by ten.

    Raises:
        JobFailed: this has been done RESTORES times already.
    """
    restores, rate = run.progress.restores + 1, run.progress.rate / 10
    best = f"; the best weights so far are {run.folder.best}" if run.progress.history else ""
    if restores > RESTORES:
        raise JobFailed(
            f"the loss or gradient in epoch {run.progress.epoch + 1} is not finite, even with a"
            f" thousandth of the learning rate; lower --lr ({run.config.lr}){best}"
        )
    state, total_seconds = run.initial_state, run.progress.total_seconds
    restore(run, run.folder.load_state(run.log) if state is None else copy.deepcopy(state))
    run.progress.restores, run.progress.rate = restores, rate
    run.progress.total_seconds = total_seconds  # --time-budget includes the lost time
    run.log(
        f"{BAD_STEPS} consecutive steps were not finite: back to epoch {run.progress.epoch + 1},"
        f" step {run.progress.step}, with the learning rate multiplied by {rate:g}"
    )


def save_and_stop(run: Run, signal_number: int) -> NoReturn:
    """Saves the state and raises `Stopped`."""
    save(run)
    position = f"epoch {run.progress.epoch + 1}, step {run.progress.step}"
    raise Stopped(
        signal_number,
        f"stopped at {position}; the state is saved in {run.folder.last}; continue with --resume",
    )


def finish_epoch(run: Run, plan: Plan, signals: StopSignals) -> None:
    """Validates, keeps the weights if they are the best so far, and saves the state.

    Raises:
        Stopped: by a signal; the state is saved.
    """
    config, progress = run.config, run.progress
    val_count = len(run.data.val or ())
    val = evaluate_on_ranks(run, run.eval_model, run.val_loader, val_count, signals)
    if val is None:
        save_and_stop(run, signals.received)
    progress.total_seconds += val["seconds"]
    if not math.isfinite(val["loss"]):
        run.log(f"the validation loss of epoch {progress.epoch + 1} is not finite")
        recover(run)
        return
    row = {
        "epoch": progress.epoch + 1,
        "train_loss": progress.loss / max(progress.pictures, 1),
        "val_loss": val["loss"],
        "val_acc1": val["acc1"],
        "lr": learning_rate(run.optimizer),
        "images_per_second": progress.pictures / max(progress.seconds, 1e-9),
        "waiting": progress.waited / max(progress.seconds, 1e-9),
        "seconds": progress.seconds + val.pop("seconds"),
    }
    progress.history.append(row)
    improved = run.best is row
    if improved:
        save_best(run, {"epoch": row["epoch"], **val})
    progress.next_epoch()
    save(run)
    if run.ranks.is_first:
        run.folder.write_history(progress.history, run.best["epoch"])
    left = "" if run.is_done else f", about {duration(plan.time_left(progress))} left"
    run.log(
        f"epoch {row['epoch']:>3}/{config.epochs}  train loss {row['train_loss']:.4f}"
        f"  val loss {val['loss']:.4f}  val accuracy {val['acc1']:6.2f} %"
        f"  {row['seconds']:.1f} s{left}{'  *' if improved else ''}"
    )


def evaluate_on_ranks(
    run: Run,
    model: VisionTransformer,
    loader: DataLoader[Any],
    count: int,
    signals: StopSignals,
) -> dict[str, float] | None:
    """Evaluates a model on pictures that are distributed over the ranks.

    Args:
        loader: this rank's pictures.
        count: pictures on all ranks.

    Returns:
        What `evaluate` returns, and the seconds it took; None if a rank received a signal.
    """
    started = time.monotonic()
    batches: Iterable[Any] = progress_bar(loader, "evaluation", shown=run.ranks.shows_bars)
    if is_sharded(model):  # all ranks must call it equally often
        length = math.ceil(math.ceil(count / run.ranks.world) / run.config.batch_size)
        batches = padded(batches, length, run.preprocessing)
    else:
        batches = in_micro_batches(until_stopped(batches, signals), run.micro_batches)
    result = evaluate(model, batches, run.ranks.device, run.ranks.gather)
    values = [float(signals.received), time.monotonic() - started]
    rows = run.ranks.gather(torch.tensor(values, device=run.ranks.device))
    signals.received = int(max(row[0] for row in rows))
    return None if signals.received else {**result, "seconds": rows[0][1]}


def until_stopped(batches: Iterable[Any], signals: StopSignals) -> Iterator[Any]:
    """The batches until a signal is received."""
    for batch in batches:
        if signals.received:
            return
        yield batch


def in_micro_batches(batches: Iterable[Any], number: int) -> Iterator[Any]:
    """Each batch in that many pieces, as in training, so that evaluation takes no more memory."""
    for images, labels in batches:
        size = max(-(-len(images) // number), 1)
        yield from zip(images.split(size), labels.split(size), strict=True)


def padded(batches: Iterable[Any], length: int, preprocessing: Preprocessing) -> Iterator[Any]:
    """The batches, and then unlabelled ones, which do not count, up to `length` in all."""
    missing = length
    for batch in batches:
        missing -= 1
        yield batch
    size = preprocessing.img_size
    for _ in range(missing):
        yield torch.zeros(1, preprocessing.in_chans, size, size), torch.tensor([NO_LABEL])


def save_best(run: Run, validation: dict[str, Any]) -> None:
    """Writes best.safetensors; all ranks must call it.

    Args:
        validation: the number of the epoch and its validation figures, for the file's metadata.
    """
    tensors = full_state(run.eval_model)
    if not run.ranks.is_first:
        return
    start_folder(run)
    training = {
        "data": run.data.name,
        "split": run.split.to_dict(),
        "settings": run.config.public(),
        **validation,
    }
    save_model(
        run.folder.best,
        run.eval_model,
        run.preprocessing,
        run.data.class_names,
        training,
        state=tensors,
    )


def log_early_stop(run: Run) -> None:
    """Prints why a run ended before its last epoch."""
    if run.progress.epoch < run.config.epochs:
        patience = number(run.config.patience, "epoch")
        reason = (
            "--time-budget is used up" if run.is_out_of_time else f"no improvement for {patience}"
        )
        run.log(f"stopped early: {reason}")


def finish(run: Run, plan: Plan, signals: StopSignals) -> dict[str, Any]:
    """Evaluates the best weights on the test pictures and writes the summary.

    Returns:
        The contents of summary.json.

    Raises:
        Stopped: by a signal; best.safetensors is complete.
    """
    data, best = run.data, run.best
    summary = {**summarize(run), "forecast_seconds": plan.seconds}
    note = "" if best["epoch"] else ", the head alone"
    run.log(f"best epoch {best['epoch']}{note}: validation accuracy {best['val_acc1']:.2f} %")
    if data.test is not None:
        loader = evaluation_loader(data.test, run.preprocessing, run.config, run.ranks)
        run.ranks.barrier()  # until the first rank has written the file
        model: VisionTransformer = load_model(run.folder.best)
        if is_sharded(run.model):
            load_full_state(run.model, model.state_dict())
            model = run.model
        else:
            model.to(run.ranks.device)
        test = evaluate_on_ranks(run, model, loader, len(data.test), signals)
        if test is None:
            raise Stopped(
                signals.received,
                f"stopped in the test evaluation; {run.folder.best} is complete",
            )
        summary |= {"test_acc1": test["acc1"], "test_loss": test["loss"]}
        pictures = number(int(test["count"]), "picture")
        run.log(f"test accuracy {test['acc1']:.2f} % on {pictures}")
    if run.ranks.is_first:
        run.folder.finish(run.progress.history, summary)
        if run.config.save_delta:
            run.log(f"delta   {run.folder.write_delta(str(run.config.weights))}")
        if run.config.report:
            add_functions(run)
        run.folder.tensorboard.close()
    return summary


def add_functions(run: Run) -> None:
    """Adds the best model's learned functions to TensorBoard; a failure is only printed."""
    try:
        model = load_model(run.folder.best)
        run.folder.tensorboard.add_functions(model, run.data.train, run.best["epoch"])
    except Exception as error:
        run.log(f"no functions for TensorBoard: {one_line(error)}")


def create_report(run: Run) -> None:
    """Writes report.html; a failure is only printed and does not fail the training."""
    started = time.monotonic()
    try:
        page = write_report(run.folder.path, run.data, str(run.ranks.device))
    except Exception as error:
        run.log(f"no report: {one_line(error)}")
    else:
        run.log(f"report  {page} ({time.monotonic() - started:.0f} s)")
        if hint := font_hint(run.data.class_names):
            sys.stderr.write(f"{hint}\n")
