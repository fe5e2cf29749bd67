"""Fits a small KAN to a table, and evaluates it on held-out rows.

    python -m kansformer.regression --task regression --data file.csv --target column

The output folder gets results.json, model.safetensors (for `load_estimator`), and the plots
history.png, predictions.png or confusion.png, and effects.png if any input varies.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from kansformer.errors import UserError, run_command
from kansformer.figures import as_png, font_hint
from kansformer.files import make_output_folder, write_bytes, write_json
from kansformer.regression.table import TASKS

# parameters of the estimators that have a flag
SETTINGS = ("hidden", "grid_size", "lr", "weight_decay", "dropout", "max_epochs")


def main() -> None:
    """Fits an estimator, and writes the results."""
    args = parse_flags()
    output = Path(args.output or Path("weights") / f"{Path(args.data).stem}-{args.task}")
    if (output / "results.json").exists() and not args.overwrite:
        raise UserError(
            f"{output}: contains earlier results; replace them with --overwrite, or choose another"
            " --output"
        )
    from kansformer.regression.experiment import run_experiment
    from kansformer.regression.model_file import save_estimator
    from kansformer.regression.table import read_table

    table = read_table(args.data, args.target, args.task, args.inputs)
    settings = {name: getattr(args, name) for name in SETTINGS if getattr(args, name) is not None}
    experiment = run_experiment(table, args.task, settings, args.test_share, args.seed)
    results = {"data": args.data, "target": args.target, **experiment.results()}
    plots = experiment.plots(args.target)
    make_output_folder(output)
    save_estimator(output / "model.safetensors", experiment.estimator)
    for name, figure in plots.items():
        write_bytes(output / name, as_png(figure))
    write_json(output / "results.json", results)
    classes = [] if args.task == "regression" else sorted(set(map(str, table.y)))
    if hint := font_hint([args.target, *table.input_names, *classes]):
        print(hint, file=sys.stderr)
    print(report(results))
    print(f"wrote {', '.join(['results.json', 'model.safetensors', *plots])} to {output}")


def parse_flags() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m kansformer.regression", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--task", required=True, choices=TASKS)
    parser.add_argument("--data", required=True, metavar="FILE", help="CSV with column names")
    parser.add_argument("--target", required=True, metavar="COLUMN", help="column to predict")
    parser.add_argument(
        "--inputs",
        nargs="+",
        metavar="COLUMN",
        help="columns to predict from (default: all others)",
    )
    parser.add_argument("--output", metavar="DIR", help="default weights/<data>-<task>")
    parser.add_argument("--overwrite", action="store_true", help="replace earlier results")
    parser.add_argument(
        "--test-share", type=float, default=0.2, metavar="F",
        help="share of the rows in the test set (default 0.2)",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of split and training (default 0)"
    )
    parser.add_argument(
        "--hidden", type=int, nargs="*", metavar="N",
        help="widths of the hidden layers; none for a sum of functions of one input",
    )  # fmt: skip
    parser.add_argument("--grid-size", type=int, metavar="N", help="grid intervals of the splines")
    parser.add_argument("--lr", type=float, metavar="F", help="learning rate")
    parser.add_argument("--weight-decay", type=float, metavar="F", help="AdamW's weight decay")
    parser.add_argument("--dropout", type=float, metavar="F", help="dropout of hidden values")
    parser.add_argument(
        "--epochs", dest="max_epochs", type=int, metavar="N", help="maximum number of epochs"
    )
    args = parser.parse_args()
    if not 0 < args.test_share < 1:
        raise UserError(f"--test-share must be between 0 and 1, not {args.test_share}")
    if not 0 <= args.seed < 2**32:
        raise UserError(f"--seed must be at least 0 and below 2^32, not {args.seed}")
    return args


def report(results: dict[str, Any]) -> str:
    """The metrics in a few lines."""
    test, train = results["metrics"]["test"], results["metrics"]["train"]
    baseline = results["baseline"]
    lines = [
        f"{results['samples']['train']} training rows, {results['samples']['test']} test rows,"
        f" {results['parameters']} parameters, {results['seconds']:.1f} s",
        f"{'':18}{'test':>11}{'training':>11}{'baseline':>11}",
    ]
    for name in test:
        other = f"{baseline[name]:11.4g}" if name in baseline else ""
        lines.append(f"{name:18}{test[name]:11.4g}{train[name]:11.4g}{other}")
    strongest = sorted(results["importance"].items(), key=lambda item: -item[1])[:5]
    lines.append("most important: " + ", ".join(f"{name} {value:.3f}" for name, value in strongest))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run_command(main))
