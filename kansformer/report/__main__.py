"""Writes the report of a finished training run, or rewrites it.

python -m kansformer.report --output weights/digits --data-path digits
"""

import argparse
import json
import sys
from pathlib import Path

from kansformer.errors import UserError, run_command
from kansformer.files import refuse_within
from kansformer.words import command


def main() -> None:
    """Writes report.html and plots/ into the run's folder."""
    parser = argparse.ArgumentParser(
        prog=command("report"), description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="the run's folder, as for train.py"
    )
    parser.add_argument(
        "--data-path", metavar="DIR|NAME", help="its pictures (default: the --data-path of the run)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps, ...")
    parser.add_argument(
        "--download", action="store_true", help="download a built-in data set if it is missing"
    )
    parser.add_argument(
        "--download-dir", default="data", metavar="DIR",
        help="folder of downloaded data sets (default data)",
    )  # fmt: skip
    args = parser.parse_args()
    folder = Path(args.output)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the --output of a finished run")
    data_path = args.data_path or data_path_of(folder)
    refuse_within(folder, Path(data_path))

    from kansformer.data import load_data, usable
    from kansformer.figures import font_hint
    from kansformer.report import write_report

    data, _ = usable(load_data(data_path, args.download, args.download_dir))
    print(f"wrote {write_report(folder, data, args.device)}")
    if hint := font_hint(data.class_names):
        print(hint, file=sys.stderr)


def data_path_of(folder: Path) -> str:
    """The --data-path of a run, from its config.json.

    Raises:
        UserError: config.json is missing or does not contain it.
    """
    path = folder / "config.json"
    try:
        return str(json.loads(path.read_text())["train"]["data_path"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path}: does not record where the data are; give --data-path") from None


if __name__ == "__main__":
    sys.exit(run_command(main))
