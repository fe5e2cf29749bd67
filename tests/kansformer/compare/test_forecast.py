"""How many runs there are, and how long the others will take."""

from kansformer.compare.forecast import plan, progress, seconds_left

JOBS = [(arm, seed) for seed in (0, 1) for arm in ("kan", "mlp")]


def test_an_arm_takes_what_its_runs_took() -> None:
    assert seconds_left({("kan", 0): 60.0}, JOBS) == 180  # nothing is known of the other arm
    assert seconds_left({("kan", 0): 60.0, ("mlp", 0): 20.0}, JOBS) == 80
    assert seconds_left({("kan", 0): 60.0, ("mlp", 0): 20.0, ("kan", 1): 100.0}, JOBS) == 20
    assert seconds_left(dict.fromkeys(JOBS, 60.0), JOBS) == 0


def test_lines() -> None:
    assert plan(JOBS, 0) == "4 runs: kan, mlp, each with seeds 0 to 1"
    assert plan(JOBS[:2], 1) == "2 runs: kan, mlp with seed 0; 1 finished before"
    seconds = {("kan", 0): 600.0, ("mlp", 0): 300.0}
    assert (
        progress(seconds, JOBS, 300.0)
        == "2 of 4 runs finished, this one in 5 min; about 15 min left"
    )
    assert (
        progress(dict.fromkeys(JOBS, 9.0), JOBS, 9.0) == "4 of 4 runs finished, this one in 9.0 s"
    )
