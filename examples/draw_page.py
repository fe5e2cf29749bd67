"""Draws the page of the digits, as Chromium shows it: python examples/draw_page.py FILE [--dark].

Needs `pip install -r requirements-web.txt playwright` and Chromium.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SERVER = [
    sys.executable, "-m", "kansformer.web", "--weights", "weights/digits.safetensors",
    "--port", "0",
]  # fmt: skip


def draw(address: str, file: Path, width: int, dark: bool) -> None:
    """Puts the digit of the examples on the page, and writes what can be seen then."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        # Chromium's own sandbox does not work for root, as in containers
        browser = play.chromium.launch(
            executable_path=shutil.which("chromium"), chromium_sandbox=os.geteuid() != 0
        )
        scheme = "dark" if dark else "light"
        page = browser.new_page(viewport={"width": width, "height": 700}, color_scheme=scheme)
        page.goto(address)
        page.set_input_files("#picture input[type=file]", ROOT / "examples" / "digit.png")
        page.wait_for_selector("#functions figure")
        page.wait_for_timeout(1000)  # bars grow
        page.screenshot(path=file, full_page=True)
        browser.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="where to write the picture, a PNG")
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--width", type=int, default=1140, help="of the window (default 1140)")
    args = parser.parse_args()

    server = subprocess.Popen(SERVER, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        said = re.match(r"http://\S+", server.stdout.readline())
        if said:  # else it has said itself what is wrong
            draw(said[0], args.file, args.width, args.dark)
            print(f"wrote {args.file}")
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
