"""A headless Chromium for tests of web pages, which are skipped if it is not installed.

with chromium() as browser, visit(browser, path.as_uri(), width=390, dark=True) as visited:
    visited.page.get_by_role("button", name="Classify").click()
    assert visited.problems() == []
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None or find_spec("playwright") is None,
    reason="needs Chromium (apt-get install chromium) and playwright",
)
# containers have a small /dev/shm
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]


@dataclass
class Visit:
    """An open page and its errors so far.

    Attributes:
        errors: console errors, script errors and failed requests.
    """

    page: "Page"
    errors: list[str] = field(default_factory=list)

    def broken_pictures(self) -> list[str]:
        """Alternative texts (or addresses) of pictures that did not load."""
        self.page.wait_for_function("[...document.images].every(image => image.complete)")
        return self.page.evaluate(
            "[...document.images].filter(image => !image.naturalWidth)"
            ".map(image => image.alt || image.src.slice(0, 80))"
        )

    def overflow(self) -> int:
        """Pixels by which the page is wider than its window."""
        root = "document.documentElement"
        return self.page.evaluate(f"{root}.scrollWidth - {root}.clientWidth")

    def problems(self) -> list[str]:
        """Errors, broken pictures and horizontal overflow, none of which a page should have."""
        wide = self.overflow()
        return [
            *self.errors,
            *(f"broken picture: {name}" for name in self.broken_pictures()),
            *([f"{wide} pixels wider than the window"] if wide > 0 else []),
        ]


@contextmanager
def chromium() -> Iterator["Browser"]:
    """The browser; keep it open for at most one test module, as it runs an event loop."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def visit(
    browser: "Browser", address: str, width: int = 1280, height: int = 900, *,
    dark: bool = False, javascript: bool = True, offline: bool = False,
) -> Iterator[Visit]:  # fmt: skip
    """Opens an address in a separate browser context, which shares no state with others."""
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light",
        java_script_enabled=javascript, offline=offline,
    )  # fmt: skip
    visited = Visit(context.new_page())
    page, errors = visited.page, visited.errors
    page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("requestfailed", lambda request: errors.append(f"{request.url}: {request.failure}"))
    try:
        page.goto(address)
        yield visited
    finally:
        context.close()
