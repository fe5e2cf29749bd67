"""The plan of a run, made before its first step: memory and time, and what would take less."""

import math
from dataclasses import dataclass, replace

from kansformer import memory
from kansformer.device import free_memory
from kansformer.errors import JobFailed
from kansformer.train.auto_batch import choose_micro_batches, train_most_layers
from kansformer.train.config import TrainConfig
from kansformer.train.distributed import Ranks
from kansformer.train.measure import (
    StepMemory,
    Times,
    bytes_to_come,
    fullest,
    measure_memory,
    measure_time,
)
from kansformer.train.picture_size import candidate_sizes
from kansformer.train.run import Progress, Run
from kansformer.words import duration, gigabytes
from models.twins import count, count_parameters
from models.vit_model import VisionTransformer

USABLE = 0.9  # share of the free memory that a step may take; the rest is for what is not measured
PATIENCE = 30 * 60  # seconds; a longer run on a CPU gets advice
WIDTHS = 16  # numbers per token and channel that a block keeps for its gradient, at least


@dataclass(frozen=True)
class Plan:
    """What a run will take. Times are in seconds."""

    times: Times
    epochs: int
    steps: int  # per epoch
    progress: Progress  # when the plan was made
    budget: float = math.inf  # --time-budget
    memory: StepMemory | None = None
    batch_size: int = 1
    micro_batches: int = 1
    advice: tuple[tuple[str, float], ...] = ()  # flags, and how long the run would take with them

    @property
    def epoch_seconds(self) -> float:
        """Of the training and validation of an epoch."""
        return self.steps * self.times.step + self.times.evaluation

    @property
    def unlimited_seconds(self) -> float:
        """Of the training and validation of all epochs, past ones included, with no time budget."""
        done = self.progress.epoch * self.steps + self.progress.step
        return (
            self.progress.total_seconds
            + (self.epochs * self.steps - done) * self.times.step
            + (self.epochs - self.progress.epoch) * self.times.evaluation
        )

    @property
    def seconds(self) -> float:
        """Of the training and validation of the whole run, as "seconds" in summary.json."""
        return min(self.unlimited_seconds, max(self.budget, self.progress.total_seconds))

    @property
    def seconds_left(self) -> float:
        """From here to the end of the run, with saved states and the test pictures."""
        left = self.seconds - self.progress.total_seconds
        epochs = self.epochs - self.progress.epoch
        return left + epochs * self.times.saving + self.times.test

    def lines(self) -> list[str]:
        """The plan in words: a line on memory if it is known, and one on time."""
        split = f"each batch is split into {self.micro_batches} micro-batches"
        parts = [split] if self.micro_batches > 1 else []
        if self.memory is not None:
            needed = self.memory.needed(self.batch_size, self.micro_batches)
            parts = [f"a step takes {gigabytes(needed)}, {gigabytes(self.memory.free)} are free",
                     *parts]  # fmt: skip
        return [*([f"memory  {'; '.join(parts)}"] if parts else []), self._time_line()]

    def _time_line(self) -> str:
        if not self.steps:
            return f"time    about {duration(self.seconds_left)} for the evaluation"
        step = self.times.step
        text = (
            f"time    {f'{step:.2f} s' if step >= 0.1 else f'{1000 * step:.1f} ms'} per step:"
            f" {duration(self.epoch_seconds)} per epoch, about {duration(self.seconds_left)} in all"
        )
        if self.unlimited_seconds > self.budget:
            share = self.budget / self.unlimited_seconds
            text += f"; --time-budget ends it after about {share:.0%} of its epochs"
        if self.advice:
            options = [f"{flags} (about {duration(seconds)})" for flags, seconds in self.advice]
            text += f"; to be faster: {', '.join(options)}"
        return text

    def time_left(self, now: Progress) -> float:
        """Seconds to the end of the run, by the times that its steps and epochs have taken so far.

        Args:
            now: the progress of the run.
        """
        if now.epoch >= self.epochs:
            return self.times.test
        step = now.seconds / now.step if now.step else self.times.step
        epoch = self.steps * step + self.times.evaluation
        if now.epoch:
            epoch = now.history[-1]["seconds"]
        current = epoch
        if now.step:
            current = (self.steps - now.step) * step + self.times.evaluation
        later = self.epochs - now.epoch - 1
        left = current + later * epoch + (later + 1) * self.times.saving
        return min(left, max(self.budget - now.total_seconds, 0.0)) + self.times.test


def make_plan(run: Run) -> Plan:
    """Plans a run that has been built, splits its batches where memory is short, and prints both.

    All ranks must call it. Apart from the number of micro-batches, it leaves the run as it was.

    Raises:
        JobFailed: not even a step of one picture fits into the memory.
    """
    config = run.config
    train_most_layers(run)
    step_memory = None if config.head_only else fit_memory(run)
    if config.auto_batch:
        run.micro_batches = choose_micro_batches(run)
    plan = Plan(
        times=measure_time(run),
        epochs=config.epochs,
        steps=run.steps,
        progress=replace(run.progress),
        budget=math.inf if config.time_budget is None else 60 * config.time_budget,
        memory=step_memory,
        batch_size=config.batch_size,
        micro_batches=run.micro_batches,
    )
    if run.ranks.device.type == "cpu" and plan.seconds_left > PATIENCE:
        plan = replace(plan, advice=tuple(faster(run, plan)))
    for line in plan.lines():
        run.log(line)
    return plan


def fit_memory(run: Run) -> StepMemory | None:
    """Measures the memory of a step, and splits batches into the fewest micro-batches that fit.

    A resumed run keeps its number of micro-batches if that fits, and so its bits.

    Returns:
        The memory, or None where the device does not tell.

    Raises:
        JobFailed: not even a step of one picture fits.
    """
    least = least_memory(run)
    if least.needed(1) > least.free:
        raise JobFailed(refusal(run, least))
    measured = measure_memory(run)
    if measured is not None:
        micro_batches = fewest_micro_batches(measured, run.config.batch_size, run.micro_batches)
        if micro_batches is None:
            raise JobFailed(refusal(run, measured))
        run.micro_batches = micro_batches
    return measured


def fewest_micro_batches(measured: StepMemory, batch_size: int, at_least: int = 1) -> int | None:
    """The fewest micro-batches, `at_least` times a power of two, that fit; None if none do."""
    micro_batches = at_least
    while measured.needed(batch_size, micro_batches) > USABLE * measured.free:
        if micro_batches >= batch_size:
            return None
        micro_batches *= 2
    return micro_batches


def least_memory(run: Run) -> StepMemory:
    """A lower bound, by the sizes of the model alone, so that nothing large is tried in vain."""
    settings = run.model.config
    kept = 0
    if run.config.tuned == {"all"}:  # else blocks keep less
        tokens = (settings.img_size // settings.patch_size) ** 2
        number_bytes = 4 if run.config.amp == "none" else 2
        kept = settings.depth * tokens * settings.embed_dim * WIDTHS * number_bytes
    fixed, free = fullest(run.ranks, bytes_to_come(run), free_memory(run.ranks.device))
    return StepMemory(fixed, 0, kept, free)


def refusal(run: Run, needs: StepMemory) -> str:
    """Why a run does not fit into the memory, and what would, in one line."""
    config, settings = run.config, run.model.config
    usable = USABLE * needs.free
    options = []
    one = replace(needs, pixels=0).needed(1)
    if config.batch_size > 1 and one <= usable:
        fitting = [n for n in (2**i for i in range(20))
                   if n < config.batch_size and needs.needed(n, n) <= usable]  # fmt: skip
        options += [f"--batch-size {max(fitting)}"] if fitting else []
        options += ["--workers 0"] if run.train_loader.num_workers else []
    patches = settings.img_size // settings.patch_size
    for size in reversed(candidate_sizes(settings.patch_size, settings.img_size)[:-1]):
        share = (size / settings.patch_size / patches) ** 2
        if needs.fixed + share * (needs.pixels + needs.activations) <= usable:
            options.append(f"--img-size {size}")
            break
    size_text = f"{settings.img_size} x {settings.img_size} pixels"
    return (
        f"a step of even one picture of {size_text} takes {gigabytes(max(one, needs.needed(1)))} of"
        f" memory, {shortage(needs.free, run.ranks)}; {remedies(config, options)}"
    )


def check_state_fits(config: TrainConfig, model: VisionTransformer, ranks: Ranks) -> None:
    """Checks that gradients, moments and average of the weights fit, before they are made.

    Raises:
        JobFailed: they do not.
    """
    if config.tuned != {"all"} and not config.unfreeze_every:
        return
    copies = 3 + (config.ema > 0)
    needed = 4 * copies * count_parameters(model) // (ranks.world if config.shard else 1)
    needed, free = fullest(ranks, needed, free_memory(ranks.device))
    if needed > free:
        raise JobFailed(
            f"the gradient of {count_parameters(model):,} parameters and the state of the optimizer"
            f" take {gigabytes(needed)} of memory, {shortage(free, ranks)}; {remedies(config, [])}"
        )


def shortage(free: int, ranks: Ranks) -> str:
    """How much memory is free, and what limits it."""
    limit = f" ({memory.scarcest()})" if ranks.device.type == "cpu" else ""
    return f"and {gigabytes(free)} are free{limit}"


def remedies(config: TrainConfig, options: list[str]) -> str:
    """What to do where memory is short."""
    others = ["--tune head"] if config.weights and config.tuned == {"all"} else []
    others += [] if options or config.weights else ["a smaller --model"]
    choices = [*options, *others]
    return f"choose {' or '.join(choices)}, or provide more" if choices else "provide more"


def faster(run: Run, plan: Plan) -> list[tuple[str, float]]:
    """Flags that would shorten a long run, none of which the user has set, with its new length."""
    config, settings = run.config, run.model.config
    options = []
    wanted = min(PATIENCE, plan.seconds_left / 2)
    sizes = candidate_sizes(settings.patch_size, settings.img_size)[:-1]
    if config.img_size is None and sizes:
        flops = count(settings, "flops")
        lengths = {
            size: plan.seconds_left * count(replace(settings, img_size=size), "flops") / flops
            for size in sizes
        }
        size = max((s for s in sizes if lengths[s] <= wanted), default=sizes[0])
        options.append((f"--img-size {size}", lengths[size]))
    if config.weights and config.tuned == {"all"}:
        splits = (run.data.train, run.data.val, run.data.test)
        pictures = sum(len(split) for split in splits if split)
        per_picture = plan.times.evaluation / max(len(run.data.val or ()), 1)
        options.append(("--tune head", pictures * per_picture))  # computes each picture once
    return [(flags, seconds) for flags, seconds in options if seconds < 0.8 * plan.seconds_left]
