"""Shows what a trained Vision Transformer has learned, and can make it smaller.

    python -m kansformer.interpret --weights weights/digits.safetensors --data-path digits

The output folder gets interpretation.json, and pictures: the learned functions and the hidden units
of each block, layers at a glance, attention. With --prune-units and the other flags of surgery it
gets changed.safetensors too, a weights file as any other.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kansformer.errors import UserError, run_command
from kansformer.figures import as_png, drawable_names, font_hint
from kansformer.files import make_output_folder, write_bytes, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from kansformer.checkpoint import TrainedModel
    from kansformer.interpret.inspection import Inspection, Sample

MOST_UNITS = 12


def main() -> None:
    """Reads the flags, looks, operates if asked to, and writes the results."""
    args = parse_flags()
    output = Path(args.output or Path("weights") / f"{Path(args.weights).stem}-inside")
    if (output / "interpretation.json").exists() and not args.overwrite:
        raise UserError(
            f"{output}: holds earlier results; replace them with --overwrite, or choose another"
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
    from kansformer.words import command, number

    surgery = Surgery(
        args.prune_units, args.prune_edges, args.refine,
        None if args.blocks is None else tuple(args.blocks), args.formulas,
    )  # fmt: skip
    model = load_model(args.weights)
    check(model, surgery)
    data = load_data(args.data_path, args.download, args.download_dir)
    sample = choose_pictures(model, data, args.pictures, args.test_pictures, args.seed)
    found = inspect_model(model, sample, args.edges, args.units)
    says = {"weights": args.weights, "data": data.name, **results(model, found, sample)}
    changed = None
    if surgery.is_asked:
        changed, says["surgery"] = operate(model, found, sample, surgery)
    make_output_folder(output)
    says["figures"] = []
    for name, figure, alt in pictures(model, found, sample, args.theme):
        write_bytes(output / name, as_png(figure))
        says["figures"].append({"file": name, "alt": alt})
    if hint := font_hint(model.class_names):
        print(hint, file=sys.stderr)
    if changed is not None:
        how = {**model.training_info, "surgery": says["surgery"]}
        path = output / "changed.safetensors"
        save_model(path, changed, model.preprocessing, model.class_names, how)
    write_json(output / "interpretation.json", says)
    print(report(says))
    print(f"wrote interpretation.json and {number(len(says['figures']), 'picture')} to {output}")
    if changed is not None:
        print(f"next: {command('train')} --data-path {args.data_path} --weights {path}")


def parse_flags() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m kansformer.interpret", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--weights", required=True, metavar="FILE", help="a best.safetensors")
    parser.add_argument(
        "--data-path", required=True, metavar="DIR|NAME", help="pictures, as for train.py"
    )
    parser.add_argument("--output", metavar="DIR", help="default weights/<weights>-inside")
    parser.add_argument("--overwrite", action="store_true", help="replace earlier results")
    parser.add_argument(
        "--download", action="store_true", help="fetch a built-in data set that is not there"
    )
    parser.add_argument(
        "--download-dir", default="data", metavar="DIR", help="where those are (default data)"
    )
    whole: list[tuple[str, int, str]] = [
        ("pictures", 500, "training pictures to look at"),
        ("test-pictures", 2000, "held-out pictures to measure accuracy on, at most"),
        ("edges", 8, "functions to show of each layer"),
        ("units", 6, "hidden units to show of each block"),
        ("seed", 0, "of the choice of pictures"),
    ]
    for name, default, text in whole:
        parser.add_argument(
            f"--{name}", type=int, default=default, metavar="N", help=f"{text} (default {default})"
        )
    parser.add_argument(
        "--theme", default="light", choices=("light", "dark"), help="of the pictures"
    )
    group = parser.add_argument_group("surgery")
    group.add_argument(
        "--prune-units", type=float, metavar="F", help="share of the hidden units to remove"
    )
    group.add_argument(
        "--prune-edges", type=float, metavar="F", help="share of each layer's edges to set to zero"
    )
    group.add_argument("--refine", type=int, metavar="N", help="intervals of finer grids")
    group.add_argument(
        "--blocks", type=int, nargs="+", metavar="N", help="blocks to refine (default all)"
    )
    group.add_argument(
        "--formulas", type=float, metavar="R2",
        help="project the functions that are shown onto formulas with at least this R²",
    )  # fmt: skip
    args = parser.parse_args()
    for name, *_ in whole:
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
        raise UserError("--blocks says which grids to refine; add --refine")
    args.units = min(args.units, MOST_UNITS)
    return args


def pictures(
    model: "TrainedModel", found: "Inspection", sample: "Sample", theme: str
) -> "Iterator[tuple[str, Figure, str]]":
    """File name, figure and alternative text of every picture."""
    from kansformer.interpret import blocks_drawing as drawing
    from kansformer.interpret.inspection import attention_rows

    names, drawable = model.class_names, drawable_names(model.class_names)
    if model.config.ffn != "mlp":
        yield (
            "layers.png",
            drawing.draw_overview(found.facts, theme),
            drawing.overview_alt_text(found.facts),
        )
    for block, layers in enumerate(found.curves):
        if layers:
            yield (
                f"functions-{block}.png",
                drawing.draw_functions(block, layers, theme),
                drawing.functions_alt_text(block, layers),
            )
        shown, use = found.units[block], found.uses[block]
        yield (
            f"units-{block}.png",
            drawing.draw_units(block, shown, use, drawable, theme),
            drawing.units_alt_text(block, shown, use, names),
        )
    rows, answers = attention_rows(model, sample.held_out)
    shown_names = dict(zip(names, drawable, strict=True))
    figure = drawing.draw_attention(rows, [own.renamed(shown_names) for own in answers], theme)
    yield "attention.png", figure, drawing.attention_alt_text(rows, answers)


def report(says: dict[str, Any]) -> str:
    """The results in a few lines."""
    from kansformer.words import number

    lines = [
        f"{says['ffn']} model, {number(says['pictures']['looked_at'], 'picture')} looked at;"
        f" accuracy {says['accuracy']:.2f} % on"
        f" {number(says['pictures']['held_out'], 'held-out picture')}"
    ]
    if says["ffn"] == "mlp":
        lines.append("MLP blocks have no learned functions: units and attention are shown")
    else:
        lines[0] += f", {says['accuracy_without_splines']:.2f} % with all splines at zero"
        lines.append(f"{'layer':16}{'outside grid':>14}{'from splines':>14}")
        for own in says["layers"]:
            lines.append(
                f"{own['layer']:16}{100 * own['outside']:12.2f} %"
                f"{100 * own['spline_energy']:12.2f} %"
            )
    if "surgery" in says:
        lines.append(f"{'surgery':24}{'accuracy':>10}{'parameters':>12}{'FLOPs':>10}  of the FFNs")
        for step in says["surgery"]:
            lines.append(
                f"{step['step']:24}{step['accuracy']:8.2f} %{step['parameters']:12,}"
                f"{step['flops']:10,}"
            )
        speedup = says["surgery"][-1].get("speedup")
        if speedup:
            lines.append(f"the FFNs predict {speedup:.2f} times as fast, on one thread")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run_command(main))
