"""One training run, from settings and data to the files in its output folder."""

import copy
import math
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from kansformer.checkpoint import load_model, save_model
from kansformer.data import (
    PictureData,
    Preprocessing,
)
from kansformer.data.dataset import NO_LABEL
from kansformer.errors import JobFailed, Stopped, one_line
from kansformer.evaluate import evaluate
from kansformer.figures import font_hint
from kansformer.progress import progress_bar
from kansformer.report import write_report
from kansformer.signals import StopSignals
from kansformer.train.build import sizes_of_twin
from kansformer.train.config import TrainConfig
from kansformer.train.distributed import (
    ignore,
    is_sharded,
    joined_ranks,
    load_whole_state,
    whole_state,
)
from kansformer.train.facts import versions
from kansformer.train.find_lr import find_rate
from kansformer.train.grids import change_grids, first_pictures, grid_changes
from kansformer.train.memory import pieces_that_fit
from kansformer.train.optimiser import learning_rate
from kansformer.train.run import (
    Run,
    begin,
    begin_folder,
    plain_loader,
    prepare,
    restore,
    save,
    use_rate,
)
from kansformer.train.step import NOT_FINITE, TAKEN, ready_model, take_step, update_weights
from kansformer.words import number
from models.twins import count, count_parameters
from models.vit_model import VisionTransformer

BAD_STEPS = 3  # in a row, before the last good state is put back
RESTORES = 3  # before a run gives up
BUDGET_SPENT = 1  # beside the numbers of signals, which are larger


def train(
    config: TrainConfig,
    data: PictureData,
    say: Callable[[str], None] = print,
    project_root: Path | None = None,
) -> dict[str, Any]:
    """Trains a model and keeps the best by validation; see `RunFolder` for the files.

    Under torchrun every rank calls this; the first one says and writes.

    Args:
        config: the settings, as `configure` gives them.
        data: pictures with a validation split.
        say: takes each line of the report on the run.
        project_root: a folder that is given class_indices.json too.

    Returns:
        The contents of summary.json.

    Raises:
        UserError: settings, weights or pictures that cannot be used.
        JobFailed: the loss or the gradient is no longer finite, at lower rates either.
        Stopped: by a signal; the state is saved.
    """
    started = time.monotonic()
    with joined_ranks(config.device) as ranks:
        run = prepare(config, data, ranks, say if ranks.is_first else ignore, project_root)
        try_steps(run)
        begin(run)
        with StopSignals() as signals:
            while not run.is_done:
                if train_epoch(run, signals):
                    close_epoch(run, signals)
            say_why_it_ends(run)
            summary = finish(run, signals)
        if config.report and run.ranks.is_first:  # outside of signals: Ctrl-C leaves it at once
            report_on(run)
        run.say(f"done in {time.monotonic() - started:.0f} s; everything is in {run.folder.path}")
        best = shlex.quote(str(run.folder.best))
        run.say(f"next: python predict.py PICTURE --weights {best}")
    return summary


def try_steps(run: Run) -> None:
    """What has to be found with steps of the run before it begins: its pieces, then its rate."""
    if run.config.auto_batch:
        run.pieces = pieces_that_fit(run)
        if run.pieces > 1:
            run.say(f"memory  batches are worked on in {run.pieces} pieces")
    if run.config.find_lr and not run.resumed:
        use_rate(run, find_rate(run))
        run.say(f"rate    {run.config.lr:.1e} is what --find-lr chose")


def train_epoch(run: Run, signals: StopSignals) -> bool:
    """Takes the steps that are left of the present epoch.

    Returns:
        Whether the epoch is complete; else an earlier state was put back.
    """
    config, progress = run.config, run.progress
    begin_epoch(run)
    run.sampler.epoch, run.sampler.first_step = progress.epoch, progress.step
    batches = iter(run.train_loader)
    saved = clock = time.monotonic()
    bar = progress_bar(
        range(progress.step, run.steps), f"epoch {progress.epoch + 1}/{config.epochs}", run.steps,
        initial=progress.step, shown=run.ranks.shows_bars,
    )  # fmt: skip
    for step in bar:
        parts = list(islice(batches, config.accumulate))
        progress.waited += time.monotonic() - clock
        losses, norm, count = take_step(run, step, parts)
        # One reading of the device per step: what must be known before the weights change, and
        # what the ranks must agree on; the clock is the first one's.
        wish = signals.received or BUDGET_SPENT * run.is_out_of_time
        due = time.monotonic() - saved > 60 * config.save_minutes
        seconds, clock = time.monotonic() - clock, time.monotonic()
        told = losses.new_tensor([count, wish, due, seconds])
        rows = run.ranks.gather(torch.stack([losses, norm, *told]))
        loss = sum(row[0] for row in rows)
        pictures = int(sum(row[2] for row in rows))
        progress.seconds += rows[0][5]
        progress.total_seconds += rows[0][5]
        outcome = update_weights(run, loss, rows[0][1])
        if outcome == TAKEN:
            if run.average is not None:
                run.average.update(run.model, step=progress.epoch * run.steps + step + 1)
            progress.bad_steps = 0
            progress.loss += loss
            progress.pictures += pictures
        elif outcome == NOT_FINITE:
            progress.bad_steps += 1
            say_bad_step(run, step, parts, loss, rows[0][1])
            if progress.bad_steps == BAD_STEPS:
                recover(run)
                return False
        progress.step = step + 1
        bar.set_postfix(loss=f"{progress.loss / max(progress.pictures, 1):.4f}", refresh=False)
        wish = int(max(row[3] for row in rows))
        if wish > BUDGET_SPENT:
            save_and_stop(run, wish)
        if wish == BUDGET_SPENT:
            break
        if rows[0][4]:
            save(run)
            saved = time.monotonic()
    return True


def say_why_it_ends(run: Run) -> None:
    """Whether it was patience or time that came to an end before the epochs did."""
    if run.progress.epoch < run.config.epochs:
        spent = run.is_out_of_time
        waited = number(run.config.patience, "epoch")
        run.say("the time budget is spent" if spent else f"no better for {waited}")


def begin_epoch(run: Run) -> None:
    """Freezes layers, changes grids and wraps the model, as the epoch wants it."""
    config, epoch = run.config, run.progress.epoch
    changed = False
    if run.progress.step == 0 and any(grid_changes(config, epoch)):
        run.sampler.epoch, run.sampler.first_step = epoch, 0
        images = first_pictures(run.train_loader, run.ranks.device)
        averaged = None if run.average is None else run.average.module
        done = change_grids(config, epoch, run.model, averaged, run.optimiser, images)
        if done:
            run.say(f"grids   {done}")
            changed = True
    ready_model(run, changed)


def say_bad_step(
    run: Run, step: int, parts: list[tuple[Tensor, Tensor]], loss: float, norm: float
) -> None:
    """Names a step that was skipped, and pictures that may be at fault."""
    pictures, batches = run.data.train, run.sampler.batches(step)
    bad = [
        pictures.name(place)
        for batch, (images, _) in zip(batches, parts, strict=True)
        for (_, place), image in zip(batch, images, strict=True)
        if not image.isfinite().all()
    ]
    names = bad or [pictures.name(place) for _, place in batches[0][:3]]
    which = "with pictures that are not finite:" if bad else "its pictures begin with"
    line = (
        f"skipped step {step + 1} of epoch {run.progress.epoch + 1}: loss {loss}, gradient norm"
        f" {norm}, rate {learning_rate(run.optimiser):.2e}; {which} {', '.join(names)}"
    )
    if run.ranks.is_first:
        run.say(line)
    elif bad:  # only this rank knows them
        sys.stderr.write(line + "\n")


def recover(run: Run) -> None:
    """Puts the last good state back, with a tenth of the learning rate.

    Raises:
        JobFailed: that has been tried often enough.
    """
    done, rate = run.progress.restores + 1, run.progress.rate / 10
    kept = f"; the best weights so far are {run.folder.best}" if run.progress.history else ""
    if done > RESTORES:
        raise JobFailed(
            f"the loss or its gradient is not finite in epoch {run.progress.epoch + 1}, and was not"
            f" at rates down to a thousandth either; lower --lr ({run.config.lr}){kept}"
        )
    state, spent = run.first_state, run.progress.total_seconds
    restore(run, run.folder.load_state(run.say) if state is None else copy.deepcopy(state))
    run.progress.restores, run.progress.rate = done, rate
    run.progress.total_seconds = spent  # --time-budget counts what was in vain too
    run.say(
        f"{BAD_STEPS} steps in a row were not finite: back to epoch {run.progress.epoch + 1}, step"
        f" {run.progress.step}, and on with {rate:g} of the learning rate"
    )


def close_epoch(run: Run, signals: StopSignals) -> None:
    """Evaluates, keeps the best weights and saves the state."""
    config, progress = run.config, run.progress
    val = evaluate_on(run, run.judged, run.val_loader, len(run.data.val or ()), signals)
    if val is None:
        save_and_stop(run, signals.received)
        return
    progress.total_seconds += val["seconds"]
    if not math.isfinite(val["loss"]):
        run.say(f"the validation loss of epoch {progress.epoch + 1} is not finite")
        recover(run)
        return
    row = {
        "epoch": progress.epoch + 1,
        "train_loss": progress.loss / max(progress.pictures, 1),
        "val_loss": val["loss"],
        "val_acc1": val["acc1"],
        "lr": learning_rate(run.optimiser),
        "images_per_second": progress.pictures / max(progress.seconds, 1e-9),
        "waiting": progress.waited / max(progress.seconds, 1e-9),
        "seconds": progress.seconds + val.pop("seconds"),
    }
    progress.history.append(row)
    improved = run.best is row
    tensors = whole_state(run.judged) if improved else None
    if tensors is not None and run.ranks.is_first:
        begin_folder(run)
        how = {"data": run.data.name, "split": run.split.to_dict(), "settings": config.public(),
               "epoch": row["epoch"], **val}  # fmt: skip
        save_model(
            run.folder.best,
            run.judged,
            run.preprocessing,
            run.data.class_names,
            how,
            state=tensors,
        )
    progress.next_epoch()
    save(run)
    if run.ranks.is_first:
        run.folder.write_history(progress.history, run.best["epoch"])
    run.say(
        f"epoch {row['epoch']:>3}/{config.epochs}  train loss {row['train_loss']:.4f}"
        f"  val loss {val['loss']:.4f}  val accuracy {val['acc1']:6.2f} %"
        f"  {row['seconds']:.1f} s{'  *' if improved else ''}"
    )


def evaluate_on(
    run: Run,
    model: VisionTransformer,
    loader: DataLoader[Any],
    count: int,
    signals: StopSignals,
) -> dict[str, float] | None:
    """Loss, accuracy and seconds for the pictures of all ranks; None if a signal came to one."""
    started = time.monotonic()
    batches: Iterable[Any] = progress_bar(loader, "evaluation", shown=run.ranks.shows_bars)
    if is_sharded(model):  # all ranks must call it equally often
        rounds = math.ceil(math.ceil(count / run.ranks.world) / run.config.batch_size)
        batches = padded(batches, rounds, run.preprocessing)
    else:
        batches = until_stopped(batches, signals)
    result = evaluate(model, batches, run.ranks.device, run.ranks.gather)
    told = [float(signals.received), time.monotonic() - started]
    rows = run.ranks.gather(torch.tensor(told, device=run.ranks.device))
    signals.received = int(max(row[0] for row in rows))
    return None if signals.received else {**result, "seconds": rows[0][1]}


def until_stopped(batches: Iterable[Any], signals: StopSignals) -> Iterator[Any]:
    """The batches, as long as there is no signal."""
    for batch in batches:
        if signals.received:
            return
        yield batch


def padded(batches: Iterable[Any], rounds: int, preprocessing: Preprocessing) -> Iterator[Any]:
    """The batches, and after them some that do not count, `rounds` in all."""
    left = rounds
    for batch in batches:
        left -= 1
        yield batch
    size = preprocessing.img_size
    for _ in range(left):
        yield torch.zeros(1, preprocessing.in_chans, size, size), torch.tensor([NO_LABEL])


def save_and_stop(run: Run, signal_number: int) -> None:
    """Saves the state and raises `Stopped`."""
    save(run)
    at = f"epoch {run.progress.epoch + 1}, step {run.progress.step}"
    raise Stopped(
        signal_number, f"stopped at {at}; the state is saved in {run.folder.last}: --resume goes on"
    )


def finish(run: Run, signals: StopSignals) -> dict[str, Any]:
    """Evaluates the best weights on the test pictures and writes the summary."""
    data, config, history = run.data, run.config, run.progress.history
    best = run.best
    summary = {
        "data": data.name,
        "classes": len(data.class_names),
        "pictures": {
            "train": len(data.train), "val": len(data.val or ()), "test": len(data.test or ())
        },
        "model": run.model.config.to_dict(),
        "recipe": config.recipe,
        "parameters": count_parameters(run.model),
        "flops_per_image": count(run.model.config, "flops"),
        "mlp_twin": sizes_of_twin(config, run.model.config),
        "best_epoch": best["epoch"],
        "val_acc1": best["val_acc1"],
        "val_loss": best["val_loss"],
        "epochs": len(history),
        "seconds": sum(row["seconds"] for row in history),
        "images_per_second": float(np.median([row["images_per_second"] for row in history])),
        "seed": config.seed,
        "lr": config.lr,
        "device": str(run.ranks.device),
        "processes": run.ranks.world,
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }  # fmt: skip
    run.say(f"best epoch {best['epoch']}: validation accuracy {best['val_acc1']:.2f} %")
    if data.test is not None:
        loader = plain_loader(data.test, run.preprocessing, config, run.ranks)
        run.ranks.wait()  # until the first rank has written the file
        kept: VisionTransformer = load_model(run.folder.best)
        if is_sharded(run.model):
            load_whole_state(run.model, kept.state_dict())
            kept = run.model
        else:
            kept.to(run.ranks.device)
        test = evaluate_on(run, kept, loader, len(data.test), signals)
        if test is None:
            raise Stopped(signals.received, f"stopped in the test; {run.folder.best} is complete")
        summary |= {"test_acc1": test["acc1"], "test_loss": test["loss"]}
        told = number(int(test["count"]), "picture")
        run.say(f"test accuracy {test['acc1']:.2f} % on {told}")
    if run.ranks.is_first:
        run.folder.finish(history, summary)
        if config.report:
            show_functions(run)
        run.folder.events.close()
    return summary


def show_functions(run: Run) -> None:
    """Adds the kept model's functions to TensorBoard; a failure there is said, and no more."""
    try:
        kept = load_model(run.folder.best)
        run.folder.events.add_functions(kept, run.data.train, run.best["epoch"])
    except Exception as error:
        run.say(f"no functions for TensorBoard: {one_line(error)}")


def report_on(run: Run) -> None:
    """Writes report.html; whatever goes wrong there is said, and does not fail the training."""
    started = time.monotonic()
    try:
        page = write_report(run.folder.path, run.data, str(run.ranks.device))
    except Exception as error:
        run.say(f"no report: {one_line(error)}")
    else:
        run.say(f"report  {page} ({time.monotonic() - started:.0f} s)")
        if hint := font_hint(run.data.class_names):
            sys.stderr.write(f"{hint}\n")
