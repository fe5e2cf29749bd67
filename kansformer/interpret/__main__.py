"""Shows what a trained Vision Transformer has learned, and can make it smaller.

    python -m kansformer.interpret --weights weights/digits.safetensors --data-path digits

The output folder gets interpretation.json and plots: the learned functions and the hidden units of
each block, an overview of the layers, and attention maps. With --prune-units or another flag for
surgery it also gets changed.safetensors, an ordinary weights file.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kansformer.errors import UserError, run_command
from kansformer.figures import as_png, drawable_names, font_hint
from kansformer.files import make_output_folder, write_bytes, write_json
from kansformer.words import command, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from kansformer.checkpoint import TrainedModel
    from kansformer.interpret.inspection import Inspection, Sample

MOST_UNITS = 12


def main() -> None:
    """Inspects a model, changes it if requested, and writes the results."""
    args = parse_flags()
    weights = Path(args.weights)
    # every training calls its file best.safetensors
    name = weights.absolute().parent.name if weights.stem == "best" else weights.stem
    output = Path(args.output or Path("weights") / f"{name}-inside")
    if (output / "interpretation.json").exists() and not args.overwrite:
        raise UserError(
            f"{output}: contains earlier results; replace them with --overwrite, or choose another"
            " --output"
        )
    from kansformer.checkpoint import load_model, save_model
    from kansformer.data import load_data
    from kansformer.interpret.inspection import (
        Surgery,
        check,
        choose_pictures,
        inspect_model,
        operate,
        results,
    )

    surgery = Surgery(
        args.prune_units, args.prune_edges, args.refine,
        None if args.blocks is None else tuple(args.blocks), args.formulas,
    )  # fmt: skip
    model = load_model(args.weights)
    check(model, surgery)
    data = load_data(args.data_path, args.download, args.download_dir)
    sample = choose_pictures(model, data, args.pictures, args.test_pictures, args.seed)
    inspection = inspect_model(model, sample, args.edges, args.units)
    facts = {"weights": args.weights, "data": data.name, **results(model, inspection, sample)}
    changed = None
    if surgery.is_requested:
        changed, facts["surgery"] = operate(model, inspection, sample, surgery)
    make_output_folder(output)
    facts["figures"] = []
    for name, figure, alt in figures(model, inspection, sample, args.theme):
        write_bytes(output / name, as_png(figure))
        facts["figures"].append({"file": name, "alt": alt})
    if hint := font_hint(model.class_names):
        print(hint, file=sys.stderr)
    if changed is not None:
        training_info = {**model.training_info, "surgery": facts["surgery"]}
        path = output / "changed.safetensors"
        save_model(path, changed, model.preprocessing, model.class_names, training_info)
    write_json(output / "interpretation.json", facts)
    print(report(facts))
    print(f"wrote interpretation.json and {number(len(facts['figures']), 'plot')} to {output}")
    if changed is not None:
        print(f"next: {command('train')} --data-path {args.data_path} --weights {path}")


def parse_flags() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog=command("interpret"), description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--weights", required=True, metavar="FILE", help="a best.safetensors")
    parser.add_argument(
        "--data-path", required=True, metavar="DIR|NAME", help="pictures, as for train.py"
    )
    parser.add_argument(
        "--output", metavar="DIR", help="default weights/NAME-inside, after the run or the file"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace earlier results")
    parser.add_argument(
        "--download", action="store_true", help="download a built-in data set if it is missing"
    )
    parser.add_argument(
        "--download-dir", default="data", metavar="DIR",
        help="folder of downloaded data sets (default data)",
    )  # fmt: skip
    counts: list[tuple[str, int, str]] = [
        ("pictures", 500, "training pictures to examine"),
        ("test-pictures", 2000, "held-out pictures for the accuracy, at most"),
        ("edges", 8, "functions to show per layer"),
        ("units", 6, "hidden units to show per block"),
        ("seed", 0, "seed of the choice of pictures"),
    ]
    for name, default, text in counts:
        parser.add_argument(
            f"--{name}", type=int, default=default, metavar="N", help=f"{text} (default {default})"
        )
    parser.add_argument(
        "--theme",
        default="light",
        choices=("light", "dark"),
        help="colors of the plots (default light)",
    )
    group = parser.add_argument_group("surgery")
    group.add_argument(
        "--prune-units", type=float, metavar="F", help="share of the hidden units to remove"
    )
    group.add_argument(
        "--prune-edges", type=float, metavar="F", help="share of each layer's edges to set to zero"
    )
    group.add_argument("--refine", type=int, metavar="N", help="refine grids to N intervals")
    group.add_argument(
        "--blocks", type=int, nargs="+", metavar="N", help="blocks to refine (default all)"
    )
    group.add_argument(
        "--formulas", type=float, metavar="R2",
        help="project the functions shown onto formulas with at least this R²",
    )  # fmt: skip
    args = parser.parse_args()
    for name, *_ in counts:
        value, least = getattr(args, name.replace("-", "_")), int(name != "seed")
        if value < least:
            raise UserError(f"--{name} must be at least {least}, not {value}")
    for name in ("prune_units", "prune_edges"):
        value = getattr(args, name)
        if value is not None and not 0 < value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be between 0 and 1, not {value}")
    if args.formulas is not None and not 0 < args.formulas <= 1:
        raise UserError(f"--formulas must be above 0 and at most 1, not {args.formulas}")
    if args.blocks is not None and args.refine is None:
        raise UserError("--blocks selects the grids to refine; add --refine")
    args.units = min(args.units, MOST_UNITS)
    return args


def figures(
    model: "TrainedModel", inspection: "Inspection", sample: "Sample", theme: str
) -> "Iterator[tuple[str, Figure, str]]":
    """File name, figure and alternative text of every plot."""
    from kansformer.interpret import blocks_drawing as drawing
    from kansformer.interpret.inspection import attention_rows

    names, drawable = model.class_names, drawable_names(model.class_names)
    if model.config.ffn != "mlp":
        yield (
            "layers.png",
            drawing.draw_overview(inspection.facts, theme),
            drawing.overview_alt_text(inspection.facts),
        )
    for block, layers in enumerate(inspection.curves):
        if layers:
            yield (
                f"functions-{block}.png",
                drawing.draw_functions(block, layers, theme),
                drawing.functions_alt_text(block, layers),
            )
        shown, use = inspection.units[block], inspection.uses[block]
        yield (
            f"units-{block}.png",
            drawing.draw_units(block, shown, use, drawable, theme),
            drawing.units_alt_text(block, shown, use, names),
        )
    rows, answers = attention_rows(model, sample.held_out)
    renaming = dict(zip(names, drawable, strict=True))
    renamed = [answer.renamed(renaming) for answer in answers]
    figure = drawing.draw_attention(rows, renamed, theme)
    yield "attention.png", figure, drawing.attention_alt_text(rows, answers)


def report(facts: dict[str, Any]) -> str:
    """A summary of interpretation.json in a few lines."""

    lines = [
        f"{facts['ffn']} model, {number(facts['pictures']['looked_at'], 'picture')} examined;"
        f" accuracy {facts['accuracy']:.2f} % on"
        f" {number(facts['pictures']['held_out'], 'held-out picture')}"
    ]
    if facts["ffn"] == "mlp":
        lines.append("MLP blocks have no learned functions: only units and attention are shown")
    else:
        lines[0] += f", {facts['accuracy_without_splines']:.2f} % with all splines set to zero"
        lines.append(f"{'layer':16}{'outside grid':>14}{'from splines':>14}")
        for layer in facts["layers"]:
            lines.append(
                f"{layer['layer']:16}{100 * layer['outside']:12.2f} %"
                f"{100 * layer['spline_energy']:12.2f} %"
            )
    if "surgery" in facts:
        lines.append(f"{'surgery':24}{'accuracy':>10}{'parameters':>12}{'FLOPs':>10}  of the FFNs")
        for step in facts["surgery"]:
            lines.append(
                f"{step['step']:24}{step['accuracy']:8.2f} %{step['parameters']:12,}"
                f"{step['flops']:10,}"
            )
        speedup = facts["surgery"][-1].get("speedup")
        if speedup:
            lines.append(f"the FFNs now run {speedup:.2f} times as fast on one thread")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run_command(main))
