"""Reads a CSV file as numbers, with an error for every cell that is not a number."""

import csv
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kansformer.errors import UserError

TASKS = ("regression", "classification")
LEAST_ROWS = 10


class Table(NamedTuple):
    """Inputs and target of every row."""

    x: np.ndarray  # (N, inputs), float64
    y: np.ndarray  # (N,), float64 for regression, strings for classification
    input_names: list[str]


def read_table(
    path: str | Path, target: str, task: str, inputs: Sequence[str] | None = None
) -> Table:
    """Reads a comma-separated file whose first line names the columns.

    Args:
        target: name of the column to predict: numbers for regression, any text for classification.
        task: one of TASKS.
        inputs: names of the columns to predict from; by default all others.

    Raises:
        UserError: an unreadable file, a missing column, a cell that is not a finite number, too few
            rows, or a target that does not fit the task.
    """
    names, rows = _read(path)
    inputs = list(inputs or (name for name in names if name != target))
    for name in (target, *inputs):
        if name not in names:
            raise UserError(f"{path}: no column {name!r}; it has {', '.join(names)}")
    if target in inputs or not inputs:
        raise UserError(f"{path}: the inputs must be columns other than the target {target!r}")
    if len(rows) < LEAST_ROWS:
        raise UserError(f"{path}: {len(rows)} rows; at least {LEAST_ROWS} are needed")
    x = np.array([_numbers(path, names, rows, name) for name in inputs]).T
    if task == "regression":
        y = np.array(_numbers(path, names, rows, target))
        if np.ptp(y) == 0:
            raise UserError(
                f"{path}: column {target!r} has the same value everywhere; choose another --target"
            )
    else:
        y = np.array(_labels(path, names, rows, target))
    return Table(np.ascontiguousarray(x), y, inputs)


def _read(path: str | Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Names of the columns, and each row's line number and cells."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            names = [name.strip() for name in next(reader, [])]
            rows = [(reader.line_num, row) for row in reader if row]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; check --data") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check --data") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a CSV file in UTF-8 ({error}); export it as one") from None
    twice = [name for name, count in Counter(names).items() if count > 1]
    if not names or twice or "" in names:
        cause = f"two are named {twice[0]!r}" if twice and twice[0] else "some have no name"
        raise UserError(f"{path}: its first line must name the columns, but {cause}; correct it")
    for line, row in rows:
        if len(row) != len(names):
            raise UserError(
                f"{path}, line {line}: {len(row)} cells for {len(names)} columns; correct the line,"
                " or separate cells by commas"
            )
    return names, rows


def _numbers(
    path: str | Path, names: list[str], rows: list[tuple[int, list[str]]], name: str
) -> list[float]:
    column = names.index(name)
    values = []
    for line, row in rows:
        cell = row[column].strip()
        try:
            value = float(cell)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise UserError(
                f"{path}, line {line}: {cell!r} in column {name!r} is not a number; correct the"
                " cell, delete the line, or choose other columns with --inputs"
            )
        values.append(value)
    return values


def _labels(
    path: str | Path, names: list[str], rows: list[tuple[int, list[str]]], name: str
) -> list[str]:
    column = names.index(name)
    labels = [row[column].strip() for _, row in rows]
    counts = Counter(labels)
    if "" in counts:
        line = rows[labels.index("")][0]
        raise UserError(
            f"{path}, line {line}: column {name!r} is empty; fill it or delete the line"
        )
    if len(counts) < 2:
        raise UserError(f"{path}: column {name!r} has only one class; choose another --target")
    rarest, count = min(counts.items(), key=lambda item: item[1])
    if len(counts) > len(rows) / 3:
        raise UserError(
            f"{path}: column {name!r} has {len(counts)} different values in {len(rows)} rows; to"
            " predict numbers, use --task regression"
        )
    if count < 2:
        raise UserError(
            f"{path}: class {rarest!r} of column {name!r} has only one row, but training and test"
            " set need one each; add rows or delete it"
        )
    return labels
