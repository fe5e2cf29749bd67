"""Makes the report of a finished training run again.

python -m kansformer.report --output weights/digits --data-path digits
"""

import argparse
import json
import sys
from pathlib import Path

from kansformer.errors import UserError, run_command
from kansformer.files import refuse_within


def main() -> None:
    """Reads the flags, and writes report.html and plots/ into the run's folder."""
    parser = argparse.ArgumentParser(
        prog="python -m kansformer.report", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="the run's folder, as for train.py"
    )
    parser.add_argument(
        "--data-path", metavar="DIR|NAME", help="its pictures (default: where they were then)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps, ...")
    parser.add_argument(
        "--download", action="store_true", help="fetch a built-in data set that is not there"
    )
    parser.add_argument(
        "--download-dir", default="data", metavar="DIR", help="where those are (default data)"
    )
    args = parser.parse_args()
    folder = Path(args.output)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give --output of a finished run")
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
    """Where the pictures of a run were when it was trained.

    Raises:
        UserError: its config.json does not tell.
    """
    path = folder / "config.json"
    try:
        return str(json.loads(path.read_text())["train"]["data_path"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path}: does not tell where the data are; give --data-path") from None


if __name__ == "__main__":
    sys.exit(run_command(main))
