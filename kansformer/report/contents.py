"""What the report tells of a run: figures and pictures, before anything is drawn or written."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from kansformer.checkpoint import TrainedModel, load_model
from kansformer.data import PictureData, PictureDataset, Pictures, TrainingSampler, make_loader
from kansformer.data.augment import POLICIES, least_side, make_augmentation
from kansformer.device import choose_device
from kansformer.errors import UserError
from kansformer.evaluate.calibration import Reliability, reliability
from kansformer.evaluate.predictions import Predictions, predict_all
from kansformer.evaluate.report import figures
from kansformer.evaluate.split import choose_split, draw_as_in_training
from kansformer.figures import fit_to_show
from kansformer.infer import Predictor
from kansformer.interpret.attention import attention_rollout, overlay
from kansformer.interpret.block_activations import record
from kansformer.interpret.block_pruning import without_splines
from kansformer.interpret.block_scores import LayerFacts, layer_facts, score_block
from kansformer.interpret.blocks_drawing import LayerCurves
from kansformer.interpret.edges import LAYERS
from kansformer.interpret.inspection import accuracy, as_seen, block_curves

MOST_JUDGED = 20_000  # pictures that are predicted; of more a seeded draw
WITHOUT_SPLINES = 1000  # of those, predicted again with all splines at zero
RECORDED = 256  # training pictures whose way through the blocks is recorded
EDGES = 4  # functions of each layer
BLOCKS = 6  # blocks whose functions are shown; of more, evenly chosen ones
MISTAKES = 8
SAMPLES = 8  # training pictures, each with so many augmented versions:
VERSIONS = 3
BATCH = 64


@dataclass(frozen=True)
class Mistake:
    """A wrong prediction: the picture as the model sees it, and where its attention went."""

    path: str
    true: str
    predicted: str
    probability: float
    picture: Image.Image
    attention: Image.Image


@dataclass(frozen=True)
class Sample:
    """A training picture as it is, and as training shows it in its first epochs."""

    label: str
    picture: Image.Image
    augmented: list[Image.Image]


@dataclass(frozen=True)
class Inside:
    """What the learned functions do.

    Attributes:
        facts: of each layer, by its name.
        curves: of the blocks that are shown, by their numbers, the strongest functions.
        pictures: how many the two shares are of.
        with_splines, without_splines: share of them told right, as it is and with all splines zero.
    """

    facts: list[tuple[str, LayerFacts]]
    curves: dict[int, list[LayerCurves]]
    pictures: int
    with_splines: float
    without_splines: float


@dataclass(frozen=True)
class Contents:
    """Everything on the page; names of classes and pictures are fit to be shown.

    Attributes:
        figures: of the judged pictures, as `evaluate.report.figures` gives them.
        note: what one has to know about the choice of these pictures, or "".
        inside: None for MLP blocks.
    """

    summary: dict[str, Any]
    history: list[dict[str, Any]]
    settings: dict[str, Any]
    class_names: tuple[str, ...]
    split: str
    pictures: int
    note: str
    figures: dict[str, Any]
    reliability: Reliability
    mistakes: list[Mistake]
    samples: list[Sample]
    inside: Inside | None


def read_run(folder: Path) -> tuple[TrainedModel, dict[str, Any], list[dict[str, Any]]]:
    """The model, summary.json and metrics.jsonl of a finished run.

    Raises:
        UserError: a file is missing or damaged.
    """
    model = load_model(folder / "best.safetensors")
    texts = {}
    for name in ("summary.json", "metrics.jsonl"):
        try:
            texts[name] = (folder / name).read_text()
        except OSError as error:
            raise UserError(
                f"{folder / name}: {error.strerror}; give the folder of a finished run, or finish"
                " it with train.py --resume"
            ) from None
    try:
        history = [json.loads(line) for line in texts["metrics.jsonl"].splitlines()]
        return model, json.loads(texts["summary.json"]), history
    except ValueError as error:
        raise UserError(f"{folder}: summary.json or metrics.jsonl is damaged ({error})") from None


def look(folder: Path, data: PictureData, device: str = "cpu") -> Contents:
    """Reads a run, and runs its model on its pictures.

    Args:
        data: what it was trained on; without val/, it is split as in the training.

    Raises:
        UserError: a file of the run, or data that do not fit it.
    """
    model, summary, history = read_run(folder)
    settings = model.training_settings
    notes = []
    if data.val is None and (drawn := draw_as_in_training(data, model)) is not None:
        data = drawn.data
        notes += [] if drawn.is_same else [drawn.note]
    data = data.with_levels(model.preprocessing.levels)
    chosen = choose_split(data, model)
    notes += [chosen.note] if chosen.note else []
    if chosen.split == "val":
        notes.append("the best epoch was chosen by these very pictures, which flatters it a little")
    pictures = some(chosen.pictures, MOST_JUDGED)
    if len(pictures) < len(chosen.pictures):
        notes.append(f"drawn from {len(chosen.pictures):,}")
    found = predict_all(Predictor(model, choose_device(device)), pictures, BATCH)
    if found.unreadable:
        notes.append(f"{len(found.unreadable)} more could not be read")
    model.cpu()
    places = {pictures.name(index): index for index in range(len(pictures))}
    names = tuple(map(fit_to_show, model.class_names))
    return Contents(
        summary={**summary, "data": fit_to_show(data.name)},
        history=history,
        settings=settings,
        class_names=names,
        split={"val": "validation"}.get(chosen.split, chosen.split),
        pictures=len(found.labels),
        note="; ".join(notes),
        figures=figures(found.labels, found.probabilities, names),
        reliability=reliability(found.labels, found.probabilities),
        mistakes=surest_mistakes(model, names, pictures, places, found),
        samples=augmented_samples(model, data),
        inside=look_inside(model, data.train, pictures, places, found),
    )


def some(pictures: Pictures, count: int) -> Pictures:
    """No more than so many of the pictures, drawn by a fixed seed, in their order."""
    if len(pictures) <= count:
        return pictures
    return pictures.take(np.sort(np.random.default_rng(0).permutation(len(pictures))[:count]))


def surest_mistakes(
    model: TrainedModel, names: Sequence[str], pictures: Pictures, places: dict[str, int],
    found: Predictions,
) -> list[Mistake]:  # fmt: skip
    """The wrong predictions with the highest probability, and where the model looked."""
    guesses, sure = found.probabilities.argmax(axis=1), found.probabilities.max(axis=1)
    order = np.argsort(-sure, kind="stable")
    wrong = [i for i in order if guesses[i] != found.labels[i]][:MISTAKES]
    if not wrong:
        return []
    seen = [as_seen(model, pictures.open(places[found.paths[i]])) for i in wrong]
    rollout = attention_rollout(
        model, torch.stack([model.preprocessing.normalise(s) for s in seen])
    )
    return [
        Mistake(
            "/".join(Path(fit_to_show(found.paths[i])).parts[-2:]),  # whose folder it is is private
            names[found.labels[i]], names[guesses[i]], float(sure[i]), picture,
            overlay(picture, heat),
        )
        for i, picture, heat in zip(wrong, seen, rollout, strict=True)
    ]  # fmt: skip


def augmented_samples(model: TrainedModel, data: PictureData) -> list[Sample]:
    """The first pictures of the training, one for each class, as its first epochs show them."""
    settings = model.training_settings
    policy, seed = settings.get("augment"), settings.get("seed", 0)
    if policy not in POLICIES:
        return []
    augment = make_augmentation(policy, model.preprocessing, settings.get("random_erasing", 0.0))
    train, plain = data.train, model.preprocessing
    sampler = TrainingSampler(
        train.labels, 1, seed=seed, balanced=settings.get("balanced_sampler", False)
    )
    chosen: dict[int, int] = {}  # by label
    for place in sampler.order():
        chosen.setdefault(int(train.labels[place]), place)
        if len(chosen) == SAMPLES:
            break
    seen = PictureDataset(train, augment, seed, at_least=least_side(policy, plain))
    return [
        Sample(
            fit_to_show(data.class_names[train.labels[place]]),
            as_seen(model, train.open(place)),
            [plain.denormalise(seen[epoch, place][0]) for epoch in range(VERSIONS)],
        )
        for place in chosen.values()
    ]


def look_inside(
    model: TrainedModel, train: Pictures, pictures: Pictures, places: dict[str, int],
    found: Predictions,
) -> Inside | None:  # fmt: skip
    """The strongest functions of the blocks, and what their splines are worth."""
    config = model.config
    if config.ffn == "mlp":
        return None
    own = PictureDataset(some(train, RECORDED), model.preprocessing, skip_broken=True)
    records = record(model, (images for images, _ in make_loader(own, BATCH)))
    facts = [
        (f"block {block}, {layer}", layer_facts(model, block, layer, x))
        for block, seen in enumerate(records)
        for layer, x in zip(LAYERS, (seen.inputs, seen.hidden), strict=True)
    ]
    shown = np.unique(np.linspace(0, config.depth - 1, min(config.depth, BLOCKS)).round())
    curves = {
        block: block_curves(
            model, block, records[block], score_block(model, block, records[block]), EDGES
        )
        for block in map(int, shown)
    }
    order = np.random.default_rng(0).permutation(len(found.paths))[:WITHOUT_SPLINES]
    again = replace(
        pictures.take(np.array([places[found.paths[i]] for i in order])), labels=found.labels[order]
    )
    right = found.probabilities[order].argmax(axis=1) == found.labels[order]
    return Inside(
        facts, curves, len(order), float(right.mean()),
        accuracy(without_splines(model), model, again) / 100,
    )  # fmt: skip
