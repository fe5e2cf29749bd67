"""How many runs a comparison has, and how long those that are left are expected to take."""

from collections.abc import Mapping, Sequence

import numpy as np

from kansformer.words import duration, number

Job = tuple[str, int]  # arm and seed


def plan(jobs: Sequence[Job], finished: int) -> str:
    """The runs of a comparison in a line.

    Args:
        finished: how many of them an earlier call has finished.
    """
    arms = list(dict.fromkeys(arm for arm, _ in jobs))
    seeds = list(dict.fromkeys(seed for _, seed in jobs))
    text = f"{number(len(jobs), 'run')}: {', '.join(arms)} with seed {seeds[0]}"
    if len(seeds) > 1:
        text = f"{number(len(jobs), 'run')}: {', '.join(arms)}, each with seeds"
        text += f" {seeds[0]} to {seeds[-1]}"
    return f"{text}; {finished} finished before" if finished else text


def seconds_left(seconds: Mapping[Job, float], jobs: Sequence[Job]) -> float:
    """The time that the jobs without an entry in `seconds` are expected to take.

    Each takes the mean of the finished runs of its arm, or of all runs if its arm has none.

    Args:
        seconds: that each finished run took; at least one.
    """

    def expected(arm: str) -> float:
        times = [value for (other, _), value in seconds.items() if other == arm]
        return float(np.mean(times or list(seconds.values())))

    return sum(expected(arm) for arm, seed in jobs if (arm, seed) not in seconds)


def progress(seconds: Mapping[Job, float], jobs: Sequence[Job], last: float) -> str:
    """How many runs are finished, and what the others are expected to take, in a line.

    Args:
        seconds: that each finished run took.
        last: the seconds of the one just finished.
    """
    text = f"{len(seconds)} of {number(len(jobs), 'run')} finished, this one in {duration(last)}"
    if len(seconds) == len(jobs):
        return text
    return f"{text}; about {duration(seconds_left(seconds, jobs))} left"
