"""Takes a screenshot of the web page for digits: python examples/draw_page.py FILE [--dark].

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
    """Uploads the example digit to the page, and takes a screenshot."""
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
        page.wait_for_timeout(1000)  # until the bars have grown
        page.screenshot(path=file, full_page=True)
        browser.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="the PNG file to write")
    parser.add_argument("--dark", action="store_true", help="use the dark theme")
    parser.add_argument(
        "--width", type=int, default=1140, help="width of the window, pixels (default 1140)"
    )
    args = parser.parse_args()

    server = subprocess.Popen(SERVER, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        address = re.match(r"http://\S+", server.stdout.readline())
        if address:  # otherwise the server has printed an error
            draw(address[0], args.file, args.width, args.dark)
            print(f"wrote {args.file}")
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
