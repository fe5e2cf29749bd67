"""The report of a run: one safe, readable file, whose figures are those of evaluate."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

import kansformer.figures
from kansformer.checkpoint import load_model
from kansformer.data import PictureData, TrainingSampler, load_data, training_loader
from kansformer.data.augment import make_augmentation
from kansformer.data.dataset import PictureDataset
from kansformer.evaluate.report import figures
from kansformer.figures import as_svg
from kansformer.infer import Predictor
from kansformer.interpret.block_scores import LayerFacts
from kansformer.report import contents
from kansformer.report.contents import Contents, Inside, collect, fit_to_show
from kansformer.report.page import duration, percent, render, worth_of_splines
from kansformer.report.write import draw
from kansformer.train import loop, train
from tests.browser import chromium, needs_chromium, visit
from tests.conftest import tiny_settings, write_picture

NAMES = ("<script>alert(1)<b>", "日本語 & \"quotes\" 'x'", "$\\frac{ {{ 7*7 }} {% x %}")
NAMES_SORTED = sorted(NAMES)  # by label


class Reported(NamedTuple):
    folder: Path
    pictures: Path
    data: PictureData
    messages: list[str]

    @property
    def html(self) -> str:
        return (self.folder / "report.html").read_text()


class Page(HTMLParser):
    """Elements as (tag, attributes), and all text of the page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def train_and_report(base: Path, **changes: Any) -> Reported:
    """A run on classes with hostile names and identical pictures, so that there are mistakes."""
    folder = base / "pictures"
    for number, name in enumerate(NAMES):
        for i in range(12):
            write_picture(folder / name / f"<i>{i}</i>.png".replace("/", "∕"), (90, 90, 90),
                          100 * number + i)  # fmt: skip
    config = tiny_settings(folder, base / "run", epochs=2, report=True, **changes)
    data = load_data(str(folder)).with_validation(config.val_split, config.seed)
    messages: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contents, "BLOCKS", 1)
        train(config, data, messages.append)
    return Reported(base / "run", folder, data, messages)


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Reported:
    return train_and_report(tmp_path_factory.mktemp("reported"))


@pytest.fixture(scope="module")
def collected(reported: Reported) -> Contents:
    return collect(reported.folder, reported.data)


def test_training_writes_it_and_prints_its_path(reported: Reported) -> None:
    (line,) = [line for line in reported.messages if line.startswith("report ")]
    assert str(reported.folder / "report.html") in line
    for name in ("curves", "confusion", "classes", "calibration", "layers", "functions-0",
                 "augmented", "mistakes"):  # fmt: skip
        with Image.open(reported.folder / "plots" / f"{name}.png") as image:
            assert image.format == "PNG"
            assert min(image.size) > 60


def test_it_is_one_file_that_needs_no_network_and_no_script(reported: Reported) -> None:
    page = Page(reported.html)
    for tag, attributes in page.elements:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base", "form")
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "xlink:href", "srcset", "data"):
                assert (value or "").startswith(("data:image/", "#")), (tag, name)
    assert "@import" not in reported.html
    assert "url(http" not in reported.html
    (policy,) = [a["content"] for a in page.all("meta") if a.get("http-equiv")]
    assert (policy or "").startswith("default-src 'none';")
    assert len(reported.html.encode()) < 2_000_000


def test_every_picture_has_an_alternative_text(reported: Reported, collected: Contents) -> None:
    page = Page(reported.html)
    sheet = 1
    assert len(page.all("img")) == sheet + 2 * len(collected.mistakes)
    assert all((attributes.get("alt") or "").strip() for attributes in page.all("img"))
    drawn = page.all("svg")
    assert len(drawn) == 6  # four plots of metrics, the layers, one of four blocks
    assert all(a["role"] == "img" and len(a["aria-label"] or "") > 40 for a in drawn)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert "strongest edges of\n1 of the 4 blocks" in page.text
    links = [(a["href"] or "").removeprefix("#") for a in page.all("a")]
    assert links
    assert set(links) <= set(ids)


def test_names_are_escaped(reported: Reported) -> None:
    page = Page(reported.html)
    for name in NAMES:
        assert page.text.count(name) >= 2
        assert any(name in (a["aria-label"] or "") for a in page.all("svg"))
    assert "<i>" in page.text  # in file names
    assert "<i>" not in reported.html
    assert str(reported.folder.parent) not in reported.html
    assert fit_to_show("a\udcff\nb") == "a\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}b"


def test_its_figures_equal_those_of_evaluate(
    reported: Reported, command: Callable[..., tuple[int, str, str]]
) -> None:
    status, out, _ = command(
        "kansformer.evaluate.__main__", "--weights", reported.folder / "best.safetensors",
        "--data-path", reported.pictures, "--split", "val", "--json", "--device", "cpu",
    )  # fmt: skip
    assert status == 0
    evaluation, text = json.loads(out), Page(reported.html).text
    low, high = evaluation["accuracy_interval"]
    shares = (evaluation[name] for name in ("accuracy", "balanced_accuracy", "ece"))
    for value in (low, high, *shares):
        assert percent(value) in text
    for row in evaluation["per_class"]:
        cells = [row["class"], *(percent(row[name]) for name in ("precision", "recall", "f1"))]
        assert "".join([*cells, str(row["support"])]) in text.replace("\n", "")
    for pair in evaluation["most_confused"]:
        cells = [pair["true"], pair["predicted"], str(pair["count"]), percent(pair["share"])]
        assert "".join(cells) in text.replace("\n", "")
    summary = json.loads((reported.folder / "summary.json").read_text())
    assert f"{summary['parameters']:,}" in text
    assert f"{summary['mlp_twin']['parameters']:,}" in text
    assert percent(summary["val_acc1"] / 100) in text


def test_mistakes_are_the_most_confident_wrong_predictions(
    reported: Reported, collected: Contents
) -> None:
    predictor = Predictor.load(reported.folder / "best.safetensors")
    val = reported.data.val
    assert val is not None
    wrong = []
    for path, label in zip(val.items, val.labels, strict=True):
        (best,) = predictor(path, topk=1)[0]["top"]
        if best["index"] != label:
            wrong.append((best["probability"], str(path), NAMES_SORTED[label], best["class"]))
    wrong.sort(reverse=True)
    assert 0 < len(collected.mistakes) == min(len(wrong), contents.MISTAKES)
    for mistake, (probability, path, true, predicted) in zip(
        collected.mistakes, wrong, strict=False
    ):
        assert mistake.probability == pytest.approx(probability, abs=1e-6)
        assert (mistake.true, mistake.predicted) == (true, predicted)
        assert path.endswith(mistake.path)
        with Image.open(path) as image:  # 16 pixels, the model's size, so it is not resized
            assert np.array_equal(np.asarray(mistake.picture), np.asarray(image.convert("RGB")))


def test_samples_are_those_of_the_first_epochs(reported: Reported, collected: Contents) -> None:
    model = load_model(reported.folder / "best.safetensors")
    train_pictures, preprocessing = reported.data.train, model.preprocessing
    dataset = PictureDataset(train_pictures, make_augmentation("small", preprocessing), seed=0)
    sampler = TrainingSampler(train_pictures.labels, 8, seed=0)
    shown: list[dict[int, bytes]] = []  # by epoch and index of the picture
    for epoch in range(contents.VERSIONS):
        sampler.epoch = epoch
        indices = [index for batch in sampler for _, index in batch]
        tensors = torch.cat([images for images, _ in training_loader(dataset, sampler)])
        pixels = (255 * (0.5 * tensors + 0.5)).round().byte().permute(0, 2, 3, 1).numpy()
        shown.append({i: row.tobytes() for i, row in zip(indices, pixels, strict=True)})
    assert sorted(sample.label for sample in collected.samples) == NAMES_SORTED
    for sample in collected.samples:
        matches = [
            [index for index, pixels in epoch.items() if pixels == version.tobytes()]
            for epoch, version in zip(shown, sample.augmented, strict=True)
        ]
        # an epoch drops the pictures that do not fill a batch, so there may be no match
        assert matches[0]
        assert all(match == matches[0] for match in matches if match)
        assert NAMES_SORTED[train_pictures.labels[matches[0][0]]] == sample.label


def test_the_contribution_of_splines_is_measured(reported: Reported, collected: Contents) -> None:
    assert collected.inside is not None
    model = load_model(reported.folder / "best.safetensors")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("spline_weight"):
                parameter.zero_()
    val = reported.data.val
    assert val is not None
    answers = Predictor(model)([val.open(i) for i in range(len(val))], topk=1)
    correct = [a["top"][0]["index"] == label for a, label in zip(answers, val.labels, strict=True)]
    assert collected.inside.without_splines == pytest.approx(np.mean(correct))
    assert collected.inside.with_splines == pytest.approx(collected.figures["accuracy"])
    assert collected.inside.pictures == len(val)
    assert [name for name, _ in collected.inside.facts][-1] == "block 3, fc2"


@pytest.mark.parametrize(
    ("without", "words"),
    [(0.91, "next to nothing"), (0.896, "next to nothing"), (0.87, "a little"), (0.6, "relies")],
)
def test_the_verdict_on_splines_follows_the_loss(without: float, words: str) -> None:
    facts = [("a", LayerFacts(0.0, 0.001)), ("b", LayerFacts(0.1, 0.25))]
    verdict, figures = worth_of_splines(Inside(facts, {}, 1000, 0.9, without))
    assert words in verdict
    assert percent(without) in figures
    assert "0.10 % to 25.00 %" in figures


def test_durations() -> None:
    assert [duration(s) for s in (0.04, 59.4, 61, 3600 * 5 + 61)] == [
        "0.0 s", "59.4 s", "1 min 1 s", "5 h 1 min"
    ]  # fmt: skip


def test_a_report_that_fails_does_not_fail_the_training(
    colors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> Path:
        raise RuntimeError("no paper\nleft")

    monkeypatch.setattr(loop, "write_report", fail)
    messages: list[str] = []
    config = tiny_settings(colors, tmp_path / "run", epochs=1, report=True)
    summary = train(config, load_data(str(colors)).with_validation(0.2, 0), messages.append)
    assert summary["epochs"] == 1
    assert "no report: no paper left" in messages
    assert (tmp_path / "run" / "summary.json").is_file()


def test_mlp_blocks_have_no_functions(tmp_path: Path) -> None:
    run = train_and_report(tmp_path, ffn="mlp")
    assert "MLPs: they have no learned functions" in Page(run.html).text
    assert len(Page(run.html).all("svg")) == 4
    assert not list((run.folder / "plots").glob("functions-*.png"))


def test_the_command_rewrites_it(
    reported: Reported, command: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(contents, "BLOCKS", 1)
    before = reported.html
    (reported.folder / "report.html").unlink()
    name = "kansformer.report.__main__"
    status, out, err = command(name, "--output", reported.folder, "--device", "cpu")
    assert status == 0
    lines = [line.rpartition("\r")[2] for line in err.splitlines()]
    hint = "note: no font on this machine"  # if there is no Japanese font
    assert [line for line in lines if line and not line.startswith(hint)] == []
    assert out == f"wrote {reported.folder / 'report.html'}\n"
    assert reported.html == before


def test_bad_usage_is_one_line(
    reported: Reported, trained: Path, command: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    def error_of(*arguments: object) -> str:
        status, out, err = command("kansformer.report.__main__", *arguments)
        assert (status, out, err.count("\n")) == (2, "", 1)
        return err

    assert "no such folder" in error_of("--output", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "does not record where the data are" in error_of("--output", tmp_path / "empty")
    assert "no such weights file" in error_of(
        "--output", tmp_path / "empty", "--data-path", "digits"
    )
    assert "the model does not know the class" in error_of(
        "--output", reported.folder, "--data-path", trained.parent / "colors"
    )
    inside = reported.pictures / "run"
    inside.mkdir()
    assert "never written" in error_of("--output", inside, "--data-path", reported.pictures)
    inside.rmdir()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@needs_chromium
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_browser_shows_it_without_network_and_scripts(
    browser: Any, reported: Reported, width: int, dark: bool
) -> None:
    address = (reported.folder / "report.html").as_uri()
    with visit(browser, address, width, dark=dark, offline=True, javascript=dark) as visited:
        assert visited.problems() == []
        paper = visited.page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        assert paper == ("rgb(20, 24, 29)" if dark else "rgb(255, 255, 255)")
        letters = visited.page.evaluate(
            "[...document.querySelectorAll('svg text')].map(t => t.getBoundingClientRect().height)"
        )
        assert min(letters) > 5  # legible on a phone
        for summary in visited.page.query_selector_all("summary"):
            summary.click()
        assert visited.problems() == []


def with_names(collected: Contents, names: list[str]) -> Contents:
    """The same run as if it had classified other classes."""
    random = np.random.default_rng(0)
    labels = random.integers(0, len(names), 4 * len(names))
    probabilities = random.random((len(labels), len(names))) ** 20
    probabilities[np.arange(len(labels)), labels] += 1
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    mistakes = [replace(m, true=names[0], predicted=names[1]) for m in collected.mistakes]
    inside = collected.inside
    return replace(
        collected, class_names=tuple(names), figures=figures(labels, probabilities, names),
        mistakes=mistakes, samples=[replace(s, label=names[0]) for s in collected.samples],
        summary={**collected.summary, "classes": len(names)},
        inside=inside and replace(inside, curves={0: inside.curves[0]}),
    )  # fmt: skip


# elements outside the box of their column, or parts of a figure outside the figure
OUTSIDE = """
[...document.querySelectorAll("body *")].filter(element => {
  const drawing = element.tagName !== "svg" && element.closest("svg");
  const column = (drawing || element).parentElement.getBoundingClientRect();
  const box = element.getBoundingClientRect();
  return box.width && (box.left < column.left - 1 || box.right > column.right + 1);
}).map(element => element.outerHTML.slice(0, 200))
"""


@needs_chromium
@pytest.mark.parametrize("count", [25, 1000])
def test_nothing_lies_outside_its_column(
    browser: Any, collected: Contents, tmp_path: Path, count: int
) -> None:
    names = [f"{index} a class with a {'W' * 30}" for index in range(count)]
    renamed = with_names(collected, names)
    drawn = {name: as_svg(figure, alt_text) for name, figure, alt_text in draw(renamed, names)}
    page = tmp_path / "report.html"
    page.write_text(render(renamed, drawn))
    with visit(browser, page.as_uri()) as visited:
        for details in visited.page.query_selector_all("summary"):
            details.click()
        for width in (320, 390, 768, 1280):
            visited.page.set_viewport_size({"width": width, "height": 800})
            assert visited.problems() == []
            assert visited.page.evaluate(OUTSIDE) == []
            letters = visited.page.evaluate(
                "[...document.querySelectorAll('svg text')]"
                ".map(text => parseFloat(text.style.fontSize) * text.getScreenCTM().d || 9)"
            )
            assert min(letters) > (4.4 if width == 320 else 5.4)  # pixels: small, but legible


def test_counts_of_one_are_in_the_singular(collected: Contents) -> None:
    summary = {
        **collected.summary, "epochs": 1, "classes": 1, "threads": 1,
        "pictures": {**collected.summary["pictures"], "train": 1},
    }  # fmt: skip
    one = replace(
        collected, summary=summary, pictures=1, samples=collected.samples[:1], mistakes=[],
        history=collected.history[:1],
    )  # fmt: skip
    plots = dict.fromkeys(["curves", "calibration", "confusion", "classes", "layers"], "")
    plots |= {f"functions-{block}": "" for block in range(4)}
    text = " ".join(Page(render(one, plots)).text.split())
    for words in (
        "1 epoch of 1 picture,", "into 1 class.", "Evaluated on 1 validation picture.",
        "on 1 picture.", ", 1 thread",
    ):  # fmt: skip
        assert words in text
    assert not re.search(r"\b1 (epochs|pictures|classes|threads)", text)


def test_mistakes_name_the_true_and_the_predicted_class(
    reported: Reported, collected: Contents
) -> None:
    text = " ".join(Page(reported.html).text.split())
    for mistake in collected.mistakes:
        predicted = f"predicted {mistake.predicted} ({percent(mistake.probability)})"
        assert f"{predicted} true: {mistake.true}" in text
    assert "Most confused pairs truepredictedpictures" in text  # the head of a table


def test_letters_without_a_font_are_reported_once_and_kept_on_the_page(
    reported: Reported, command: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(contents, "BLOCKS", 1)
    monkeypatch.setattr(kansformer.figures, "_FAMILIES", {})
    usual = next(kansformer.figures._fonts())
    monkeypatch.setattr(kansformer.figures, "_fonts", lambda: iter([usual]))
    name = "kansformer.report.__main__"
    status, _, err = command(name, "--output", reported.folder, "--device", "cpu")
    (japanese,) = [name for name in NAMES if not name.isascii()]
    assert (status, err.count("\n")) == (0, 1)
    line = err.rpartition("\r")[2]  # after a bar, which shows on a slow machine
    assert line.startswith(f"note: no font on this machine has all letters of {japanese};")
    (matrix,) = re.findall(r"<svg[^>]*Confusion matrix.*?</svg>", reported.html, re.S)
    assert "日本" in re.sub("<svg[^>]*>", "", matrix)
