"""Collects the contents of a run's report: figures and pictures, before anything is drawn."""

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

MOST_EVALUATED = 20_000  # most pictures that are evaluated; of more, a seeded sample
WITHOUT_SPLINES = 1000  # of those, evaluated again with all splines set to zero
RECORDED = 256  # training pictures for which the blocks' activations are recorded
EDGES = 4  # functions shown per layer
BLOCKS = 6  # most blocks whose functions are shown, evenly spaced
MISTAKES = 8
SAMPLES = 8  # training pictures
VERSIONS = 3  # augmented versions of each
BATCH = 64


@dataclass(frozen=True)
class Mistake:
    """A wrong prediction: the picture as the model sees it, and its attention map."""

    path: str
    true: str
    predicted: str
    probability: float
    picture: Image.Image
    attention: Image.Image


@dataclass(frozen=True)
class Sample:
    """A training picture, and its augmented versions in the first epochs."""

    label: str
    picture: Image.Image
    augmented: list[Image.Image]


@dataclass(frozen=True)
class Inside:
    """What the learned functions do.

    Attributes:
        facts: (layer name, facts) for each layer.
        curves: the strongest functions of each block shown, by block index.
        pictures: number of pictures for the two accuracies.
        with_splines, without_splines: accuracy as trained, and with all splines set to zero, as
            shares between 0 and 1.
    """

    facts: list[tuple[str, LayerFacts]]
    curves: dict[int, list[LayerCurves]]
    pictures: int
    with_splines: float
    without_splines: float


@dataclass(frozen=True)
class Contents:
    """Everything on the page; names of classes and pictures contain only printable characters.

    Attributes:
        figures: metrics on the evaluated pictures, from `evaluate.report.figures`.
        note: remarks for the user about the choice of these pictures, or "".
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


def collect(folder: Path, data: PictureData, device: str = "cpu") -> Contents:
    """Reads a finished run, and evaluates its model on its pictures.

    Args:
        data: the data of the run; without val/, they are split as in training.

    Raises:
        UserError: a missing or damaged file of the run, or data that do not fit the model.
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
        notes.append(
            "the best epoch was chosen on these pictures, so the accuracy is slightly optimistic"
        )
    pictures = sample(chosen.pictures, MOST_EVALUATED)
    if len(pictures) < len(chosen.pictures):
        notes.append(f"a random sample of {len(chosen.pictures):,}")
    predictions = predict_all(Predictor(model, choose_device(device)), pictures, BATCH)
    if predictions.unreadable:
        notes.append(f"{len(predictions.unreadable)} more could not be read")
    model.cpu()
    indices = {pictures.name(index): index for index in range(len(pictures))}
    names = tuple(map(fit_to_show, model.class_names))
    return Contents(
        summary={**summary, "data": fit_to_show(data.name)},
        history=history,
        settings=settings,
        class_names=names,
        split={"val": "validation"}.get(chosen.split, chosen.split),
        pictures=len(predictions.labels),
        note="; ".join(notes),
        figures=figures(predictions.labels, predictions.probabilities, names),
        reliability=reliability(predictions.labels, predictions.probabilities),
        mistakes=confident_mistakes(model, names, pictures, indices, predictions),
        samples=augmented_samples(model, data),
        inside=inspect_blocks(model, data.train, pictures, indices, predictions),
    )


def sample(pictures: Pictures, count: int) -> Pictures:
    """At most `count` of the pictures, drawn with a fixed seed, in their original order."""
    if len(pictures) <= count:
        return pictures
    return pictures.take(np.sort(np.random.default_rng(0).permutation(len(pictures))[:count]))


def confident_mistakes(
    model: TrainedModel, names: Sequence[str], pictures: Pictures, indices: dict[str, int],
    predictions: Predictions,
) -> list[Mistake]:  # fmt: skip
    """The wrong predictions with the highest probability, with their attention maps."""
    predicted = predictions.probabilities.argmax(axis=1)
    confidence = predictions.probabilities.max(axis=1)
    order = np.argsort(-confidence, kind="stable")
    wrong = [i for i in order if predicted[i] != predictions.labels[i]][:MISTAKES]
    if not wrong:
        return []
    paths = [predictions.paths[i] for i in wrong]
    seen = [as_seen(model, pictures.open(indices[path])) for path in paths]
    rollout = attention_rollout(
        model, torch.stack([model.preprocessing.normalize(s) for s in seen])
    )
    return [
        Mistake(
            "/".join(Path(fit_to_show(path)).parts[-2:]),  # the full path is private
            names[predictions.labels[i]], names[predicted[i]], float(confidence[i]), picture,
            overlay(picture, heat),
        )
        for i, path, picture, heat in zip(wrong, paths, seen, rollout, strict=True)
    ]  # fmt: skip


def augmented_samples(model: TrainedModel, data: PictureData) -> list[Sample]:
    """The first training pictures, one per class, with their versions in the first epochs."""
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
    for index in sampler.order():
        chosen.setdefault(int(train.labels[index]), index)
        if len(chosen) == SAMPLES:
            break
    seen = PictureDataset(train, augment, seed, at_least=least_side(policy, plain))
    return [
        Sample(
            fit_to_show(data.class_names[train.labels[index]]),
            as_seen(model, train.open(index)),
            [plain.denormalize(seen[epoch, index][0]) for epoch in range(VERSIONS)],
        )
        for index in chosen.values()
    ]


def inspect_blocks(
    model: TrainedModel, train: Pictures, pictures: Pictures, indices: dict[str, int],
    predictions: Predictions,
) -> Inside | None:  # fmt: skip
    """The strongest functions of the blocks, and the accuracy without their splines."""
    config = model.config
    if config.ffn == "mlp":
        return None
    recorded = PictureDataset(sample(train, RECORDED), model.preprocessing, skip_broken=True)
    records = record(model, (images for images, _ in make_loader(recorded, BATCH)))
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
    order = np.random.default_rng(0).permutation(len(predictions.paths))[:WITHOUT_SPLINES]
    labels = predictions.labels[order]
    subset = pictures.take(np.array([indices[predictions.paths[i]] for i in order]))
    subset = replace(subset, labels=labels)
    correct = predictions.probabilities[order].argmax(axis=1) == labels
    return Inside(
        facts, curves, len(order), float(correct.mean()),
        accuracy(without_splines(model), model, subset) / 100,
    )  # fmt: skip
