"""The table's notes say what the runs can and cannot show."""

import pytest

from kansformer.compare.report import as_markdown, noise_of
from kansformer.compare.statistics import summarize


def runs_with(differences: list[float], **changes: object) -> list[dict[str, object]]:
    base = {"data": "pets", "pictures": {"test": 280, "val": 70}, "epochs": 2, "device": "cpu",
            "parameters": 10, "flops_per_image": 20, "seconds": 3.0, "test_acc1": 1.0,
            **changes}  # fmt: skip
    return [
        {**base, "arm": arm, "seed": seed, "accuracy": 80.0 + (d if arm == "kan" else 0)}
        for seed, d in enumerate(differences)
        for arm in ("kan", "mlp")
    ]


def text_of(runs: list[dict[str, object]]) -> str:
    return as_markdown(summarize(runs), runs)


def test_it_tells_what_could_have_been_detected() -> None:
    text = text_of(runs_with([0.1, 1.4, -0.6]))
    assert "- kan: with 3 seeds these runs could have detected a difference of 3.31 points" in text
    assert "(power 80%); to detect 0.5 points takes about 35 seeds, and a true difference" in text
    assert "of the observed 0.30 points about 92 seeds." in text
    assert "may be 0.5 to 6.3 times as large" in text
    assert "280 pictures: one is 0.36 points." in text
    assert "an accuracy of 80.00 % has a standard error of 2.39 points (binomial)" in text
    assert "the intervals over seeds do not include it" in text


def test_one_seed_tells_nothing() -> None:
    text = text_of(runs_with([0.5]))
    assert "With one seed there is no confidence interval, and nothing can be said" in text
    assert "detected a difference" not in text


def test_equal_differences_tell_nothing() -> None:
    text = text_of(runs_with([0.0, 0.0, 0.0]))
    assert "kan: the paired differences are all equal, so they do not tell" in text
    assert "nan" not in text.lower().split()


def test_more_than_there_are_points_is_no_difference() -> None:
    text = text_of(runs_with([-12.0, 8.0]))
    assert "these runs could have detected no difference below 100 points" in text


def test_on_validation_pictures_nothing_is_claimed_of_seeds() -> None:
    runs = runs_with([0.1, 0.4])
    for run in runs:
        run["val_acc1"] = run.pop("test_acc1")
    text = text_of(runs)
    assert "70 pictures: one is 1.43 points." in text
    assert "(binomial)." in text
    assert noise_of(summarize(runs), runs) == pytest.approx(
        {"accuracy": 80.0, "pictures": 70, "one_picture": 1.4286, "standard_error": 4.7809}, 1e-4
    )
