"""The benchmark of the walk tells a walk that ends from one that fails."""

import math
from pathlib import Path

from benchmarks import bench_hello


def test_the_last_line_of_a_script_is_its_record(tmp_path: Path) -> None:
    script = tmp_path / "walk.py"
    script.write_text('import os; print(len(os.listdir())); print(\'{"formula": "x"}\')')
    assert bench_hello.run([str(script)]) == {"formula": "x"}


def test_a_script_that_fails_counts_as_no_formula(tmp_path: Path) -> None:
    script = tmp_path / "walk.py"
    script.write_text("raise OSError('no more')")
    record = bench_hello.run([str(script)])
    assert record["formula"] == "failed: OSError: no more"
    assert math.isnan(record["test_rmse"])
    assert not record["test_rmse"] <= 1e-12
