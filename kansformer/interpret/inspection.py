"""Inspects a trained ViT on the pictures of a data set, and changes it.

Nothing here draws, prints or writes files; `kansformer.interpret.__main__` does.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kansformer.checkpoint import TrainedModel
from kansformer.data import PictureData, PictureDataset, Pictures, make_loader
from kansformer.errors import UserError
from kansformer.evaluate import evaluate
from kansformer.evaluate.split import choose_split
from kansformer.interpret.attention import attention_rollout, gradient_map, overlay
from kansformer.interpret.block_activations import BlockRecord, record
from kansformer.interpret.block_pruning import (
    compact,
    refit,
    remove_edges,
    strongest_units,
    without_splines,
)
from kansformer.interpret.block_refinement import refine_blocks
from kansformer.interpret.block_scores import (
    BlockScores,
    LayerFacts,
    layer_facts,
    score_block,
    strongest,
)
from kansformer.interpret.blocks_drawing import (
    Answer,
    LayerCurves,
    UnitPictures,
    shape_in_words,
)
from kansformer.interpret.cost import ffn_cost, ffn_speedup
from kansformer.interpret.edge_formulas import (
    EdgeFormula,
    FunctionIndex,
    project_functions,
    read_functions,
)
from kansformer.interpret.edges import LAYERS, Curve, edge_function, group_functions
from kansformer.interpret.units import UnitUse, unit_use
from models.vit_model import VisionTransformer

BATCH = 64
TOP_PICTURES = 8


@dataclass(frozen=True)
class Sample:
    """Training pictures to examine, and held-out pictures to measure accuracy on."""

    seen: Pictures
    held_out: Pictures


def choose_pictures(
    model: TrainedModel, data: PictureData, seen: int, held_out: int, seed: int = 0
) -> Sample:
    """Draws pictures of a data set, with the model's class indices as labels.

    The held-out pictures come from the test set or, without one, from the validation set, drawn by
    the rule in the weights file if the data have no val/.

    Raises:
        UserError: a class that the model does not know.
    """
    if data.val is None and (model.split is None or model.split.rule is None):
        data = data.with_validation(0.2, seed)  # the split of the training run is unknown
    generator = np.random.default_rng(seed)

    def draw(split: str, count: int) -> Pictures:
        pictures = choose_split(data, model, split).pictures
        return pictures.take(np.sort(generator.permutation(len(pictures))[:count]))

    return Sample(draw("train", seen), draw("val" if data.test is None else "test", held_out))


@dataclass(frozen=True)
class Inspection:
    """The results of an inspection, before any surgery.

    Attributes:
        records, scores, uses: one per block.
        facts: (layer name, facts) for each layer.
        curves: per block, the strongest functions, or all of a group-KAN; empty for an MLP.
        formulas: of these functions, except constant ones.
        units: per block, the strongest units with their pictures.
        accuracy, without_splines: accuracy on the held-out pictures, percent; the second with all
            splines of the blocks set to zero, None for an MLP.
    """

    records: list[BlockRecord]
    scores: list[BlockScores]
    uses: list[UnitUse]
    facts: list[tuple[str, LayerFacts]]
    curves: list[list[LayerCurves]]
    formulas: list[EdgeFormula]
    units: list[list[UnitPictures]]
    accuracy: float
    without_splines: float | None

    def inputs(self) -> dict[tuple[int, str], Tensor]:
        """Recorded inputs by block and layer."""
        return {
            (block, layer): recorded.inputs if layer == "fc1" else recorded.hidden
            for block, recorded in enumerate(self.records)
            for layer in LAYERS
        }


def inspect_model(
    model: TrainedModel, sample: Sample, edges: int = 8, units: int = 6
) -> Inspection:
    """Records activations, scores units and edges, and fits formulas, on the CPU.

    Args:
        edges: number of functions per layer.
        units: number of hidden units per block.
    """
    dataset = PictureDataset(sample.seen, model.preprocessing)
    records = record(model, (images for images, _ in make_loader(dataset, BATCH)))
    scores = [score_block(model, block, recorded) for block, recorded in enumerate(records)]
    uses = unit_use(model, make_loader(dataset, BATCH), TOP_PICTURES)
    curves: list[list[LayerCurves]] = []
    facts, formulas, shown = [], [], []
    for block, (recorded, use) in enumerate(zip(records, uses, strict=True)):
        best = scores[block].units.argsort(descending=True)[:units].tolist()
        shown.append([_unit_pictures(model, sample.seen, use, unit) for unit in best])
        curves.append([])
        for layer, x, ranks in (
            ("fc1", recorded.inputs, scores[block].first),
            ("fc2", recorded.hidden, scores[block].second),
        ):
            facts.append((f"block {block}, {layer}", layer_facts(model, block, layer, x)))
            if model.config.ffn == "mlp":
                continue
            layer_curves, indices = _functions(model, block, layer, x, ranks, edges)
            curves[block].append(LayerCurves(_heading(model, layer), layer_curves))
            formulas += read_functions(model, block, layer, indices, x)
    has_splines = model.config.ffn != "mlp"
    return Inspection(
        records, scores, uses, facts, curves, formulas, shown,
        accuracy(model, model, sample.held_out),
        accuracy(without_splines(model), model, sample.held_out) if has_splines else None,
    )  # fmt: skip


def accuracy(model: VisionTransformer, like: TrainedModel, pictures: Pictures) -> float:
    """Top-1 accuracy in percent, with the preprocessing of `like`."""
    loader = make_loader(PictureDataset(pictures, like.preprocessing), BATCH)
    return evaluate(model, loader, torch.device("cpu"))["acc1"]


def block_curves(
    model: TrainedModel, block: int, recorded: BlockRecord, scores: BlockScores, count: int
) -> list[LayerCurves]:
    """The strongest functions of a block's layers, or all of a group-KAN; empty for an MLP."""
    if model.config.ffn == "mlp":
        return []
    return [
        LayerCurves(
            _heading(model, layer), _functions(model, block, layer, x, ranks, count)[0]
        )
        for layer, x, ranks in (
            ("fc1", recorded.inputs, scores.first), ("fc2", recorded.hidden, scores.second)
        )
    ]  # fmt: skip


def _functions(
    model: TrainedModel, block: int, layer: str, x: Tensor, ranks: Tensor, count: int
) -> tuple[Sequence[Curve], list[FunctionIndex]]:
    """Curves and indices of all groups, or of the strongest edges, no two with a common end."""
    if model.config.ffn == "group-kan":
        curves = group_functions(model, block, layer, x)
        return curves, [(None, group) for group in range(len(curves))]
    edges = strongest(ranks, count, apart=True)
    curves = [edge_function(model, block, layer, target, source, x) for target, source in edges]
    return curves, list(edges)


def _heading(model: TrainedModel, layer: str) -> str:
    if model.config.ffn == "group-kan":
        of = "channels" if layer == "fc1" else "hidden units"
        return f"{layer}: one function per group of {of}"
    return {
        "fc1": "fc1: strongest edges, channel → hidden unit",
        "fc2": "fc2: strongest edges, hidden unit → channel",
    }[layer]


def _unit_pictures(
    model: TrainedModel, pictures: Pictures, use: UnitUse, unit: int
) -> UnitPictures:
    side = model.config.patch_size
    per_row = model.config.img_size // side
    boxes = [
        None if patch < 0 else (patch % per_row * side, patch // per_row * side, side)
        for patch in use.patches[unit].tolist()
    ]
    return UnitPictures(
        unit, [as_seen(model, pictures.open(i)) for i in use.pictures[unit].tolist()], boxes
    )


def as_seen(model: TrainedModel, image: Image.Image) -> Image.Image:
    """A picture as the model sees it: converted, cropped and resized."""
    return model.preprocessing.fit(model.preprocessing.convert(image))


def attention_rows(
    model: TrainedModel, pictures: Pictures, count: int = 8
) -> tuple[list[tuple[str, list[Image.Image]]], list[Answer]]:
    """Rows of pictures, attention maps and gradient maps of the predicted class, and the answers.

    The pictures are spread over the classes.
    """
    order = np.argsort(pictures.labels, kind="stable")
    chosen = order[np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)]
    seen = [as_seen(model, pictures.open(int(i))) for i in chosen]
    batch = torch.stack([model.preprocessing.normalize(image) for image in seen])
    with torch.no_grad():
        probabilities = (model(batch) / model.temperature).softmax(dim=1)
    predicted = probabilities.argmax(dim=1)
    rollout, gradient = attention_rollout(model, batch), gradient_map(model, batch, predicted)
    names = model.class_names
    answers = [
        Answer(names[index], float(row[index]), names[label])
        for index, row, label in zip(
            predicted.tolist(), probabilities, pictures.labels[chosen].tolist(), strict=True
        )
    ]
    rows = [
        ("picture", seen),
        ("attention", [overlay(i, heat) for i, heat in zip(seen, rollout, strict=True)]),
        ("gradient", [overlay(i, heat) for i, heat in zip(seen, gradient, strict=True)]),
    ]
    return rows, answers


@dataclass(frozen=True)
class Surgery:
    """Changes to a model; None leaves a step out. Formulas come first, then the order below.

    Attributes:
        prune_units, prune_edges: share to remove, in (0, 1).
        refine: number of grid intervals afterwards.
        blocks: blocks to refine; None for all.
        formulas: least R² of the formulas onto which functions are projected.
    """

    prune_units: float | None = None
    prune_edges: float | None = None
    refine: int | None = None
    blocks: tuple[int, ...] | None = None
    formulas: float | None = None

    @property
    def is_requested(self) -> bool:
        """Whether there is any change to make."""
        return any(
            value is not None
            for value in (self.prune_units, self.prune_edges, self.refine, self.formulas)
        )


def check(model: TrainedModel, surgery: Surgery) -> None:
    """Checks, before long work, that the changes are possible.

    Raises:
        UserError: the grids cannot be refined as requested.
    """
    if surgery.refine is None:
        return
    try:
        refine_blocks(model, surgery.refine, surgery.blocks)
    except ValueError as error:
        raise UserError(f"--refine: {error}; use another number, or other --blocks") from None


def operate(
    model: TrainedModel, inspection: Inspection, sample: Sample, surgery: Surgery
) -> tuple[VisionTransformer, list[dict[str, Any]]]:
    """The changed model, and accuracy, size and speed after each step.

    Raises:
        ValueError: the grids cannot be refined as requested.
    """
    changed: VisionTransformer = model
    start = {"step": "before", "accuracy": inspection.accuracy, **asdict(ffn_cost(model))}
    steps: list[dict[str, Any]] = [start]
    scores, inputs = inspection.scores, inspection.inputs()

    def step(name: str, result: VisionTransformer, **facts: Any) -> VisionTransformer:
        percent = accuracy(result, model, sample.held_out)
        steps.append({"step": name, "accuracy": percent, **asdict(ffn_cost(result)), **facts})
        return result

    if surgery.formulas is not None:
        good = [formula for formula in inspection.formulas if formula.r2 >= surgery.formulas]
        changed = project_functions(changed, good, inputs)
        step("functions as formulas", changed, projected=len(good))
    if surgery.prune_units is not None:
        kept = strongest_units(model.config, scores, 1 - surgery.prune_units)
        changed = step("units removed", compact(changed, kept))
        changed = step("second layers refitted", refit(changed, inspection.records))
        scores = [_of_units(block, units) for block, units in zip(scores, kept, strict=True)]
    if surgery.prune_edges is not None:
        changed = remove_edges(changed, scores, 1 - surgery.prune_edges)
        step("edges removed", changed)
    if surgery.refine is not None:
        changed = step("grids refined", refine_blocks(changed, surgery.refine, surgery.blocks))
    if surgery.prune_units is not None:
        steps[-1]["speedup"] = ffn_speedup(model, changed)
    return changed, steps


def _of_units(scores: BlockScores, units: Tensor) -> BlockScores:
    return BlockScores(scores.units[units], scores.first[units], scores.second[:, units])


def results(model: TrainedModel, inspection: Inspection, sample: Sample) -> dict[str, Any]:
    """An inspection in plain types, as in interpretation.json."""
    names = model.class_names
    formulas = {(f.block, f.layer, f.target, f.source): f for f in inspection.formulas}
    blocks = []
    for block, use in enumerate(inspection.uses):
        scores = inspection.scores[block].units
        units = []
        for unit in scores.argsort(descending=True).tolist():
            means = use.class_means[:, unit]
            highest = int(means.nan_to_num(-torch.inf).argmax())
            units.append({"unit": unit, "score": float(scores[unit]), "most": names[highest]})
        functions = []
        for layer, shown in zip(LAYERS, inspection.curves[block], strict=False):
            for curve in shown.curves:
                formula = formulas.get((block, layer, curve.target, curve.source))
                functions.append(
                    {
                        "layer": layer,
                        "target": curve.target,
                        "source": curve.source,
                        "shape": shape_in_words(curve),
                        "outside_grid": curve.outside,
                        "formula": None if formula is None else str(formula),
                        "r2": None if formula is None else formula.r2,
                    }
                )
        blocks.append({"block": block, "units": units, "functions": functions})
    return {
        "ffn": model.config.ffn,
        "pictures": {"looked_at": len(sample.seen), "held_out": len(sample.held_out)},
        "accuracy": inspection.accuracy,
        "accuracy_without_splines": inspection.without_splines,
        "layers": [{"layer": name, **asdict(facts)} for name, facts in inspection.facts],
        "blocks": blocks,
    }
