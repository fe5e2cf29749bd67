"""The page in a browser, and its JSON compared with predict.py."""

import json
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
from PIL import Image

from kansformer.checkpoint import load_model, save_model
from tests.browser import chromium, needs_chromium, visit
from tests.conftest import ROOT
from tests.server import served, stop

if TYPE_CHECKING:
    from playwright.sync_api import Browser

Command = Callable[..., tuple[int, str, str]]
DIGITS = ROOT / "weights" / "digits.safetensors"
DIGIT = ROOT / "examples" / "digit.png"
PAGE = ("-m", "kansformer.web", "--weights", DIGITS, "--device", "cpu")
SOON = 30_000  # milliseconds


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A digit in three formats, one of them upside down, and two files that are not pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    with Image.open(DIGIT) as digit:
        for name in ("eight.png", "acht ü.tiff", "turned.jpg"):
            exif = Image.Exif()
            exif[274] = 3  # upside down
            digit.save(folder / name, **({"exif": exif} if name == "turned.jpg" else {}))
    for name in ("notes.txt", "<b>broken.png"):
        (folder / name).write_text("no picture")
    return folder


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a digit."""
    folder = tmp_path_factory.mktemp("examples")
    return Path(shutil.copy(DIGIT, folder)).parent


@pytest.fixture(scope="module")
def address(examples: Path) -> Iterator[str]:
    with served([*PAGE, "--examples", examples], ROOT) as (address, _):
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    with chromium() as browser:
        yield browser


def post(address: str, files: list[tuple[str, bytes]]) -> tuple[int, str]:
    """Sends files as a form, and returns the status and text of the response."""
    mark = uuid.uuid4().hex
    parts = [
        f'--{mark}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n'
        f"Content-Type: application/octet-stream\r\n\r\n".encode()
        + data
        + b"\r\n"
        for name, data in files
    ]
    request = urllib.request.Request(
        address, b"".join([*parts, f"--{mark}--\r\n".encode()]),
        {"Content-Type": f"multipart/form-data; boundary={mark}"},
    )  # fmt: skip
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@needs_chromium
def test_a_picture_is_classified_and_explained_without_leaving(
    browser: "Browser", address: str, pictures: Path
) -> None:
    with visit(browser, "about:blank", width=390) as visited:
        page, requested = visited.page, []
        page.on("request", lambda request: requested.append(request.url))
        page.goto(address)
        page.set_input_files("#picture input[type=file]", pictures / "eight.png")
        page.wait_for_selector("#functions figure", timeout=SOON)
        assert page.locator("#answer h2").inner_text() == "8"
        assert page.locator("#functions figure").count() == 6
        assert re.search(r"8 leads the second class, \d", page.locator("#functions").inner_text())
        assert page.locator("#attention img").evaluate("i => i.decode().then(() => i.naturalWidth)")
        assert visited.overflow() <= 0

        page.set_input_files("#picture input[type=file]", [])  # keeps the picture
        page.get_by_label("Remove Image").click()
        page.wait_for_selector("#functions figure", state="hidden")
        page.set_input_files("#picture input[type=file]", pictures / "<b>broken.png")
        text = "<b>broken.png: not a picture of a known format"
        assert text in page.locator("#message [role=alert]").inner_text(timeout=SOON)
        assert page.locator("#answer h2").count() == 0

        page.locator("#examples button").first.click()
        page.wait_for_selector("#functions figure", timeout=SOON)
        assert page.locator("#message [role=alert]").count() == 0
        assert page.locator("#answer h2").inner_text() == "8"

        page.get_by_role("tab", name="Several pictures").click()
        names = ("eight.png", "notes.txt", "<b>broken.png", "acht ü.tiff")
        page.set_input_files("#files input[type=file]", [pictures / name for name in names])
        page.wait_for_selector("#answers table", timeout=SOON)
        rows = page.locator("#answers tbody tr").all_inner_texts()
        for name, row in zip(names, rows, strict=True):
            assert name in row
            assert ("\t8\t" if name in ("eight.png", "acht ü.tiff") else "not a picture") in row
        assert visited.overflow() <= 0
        loaded = [url for url in requested if not url.startswith(("data:", "blob:"))]
        assert {urlsplit(url).hostname for url in loaded} == {"127.0.0.1"}


@pytest.fixture(scope="module")
def long_names(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page of a model whose classes have long names, with long words."""
    weights = tmp_path_factory.mktemp("long") / "long.safetensors"
    model = load_model(DIGITS)
    names = tuple(f"{digit} <b>{'is a long name ' * 3}{'W' * 60}" for digit in range(10))
    save_model(weights, model, model.preprocessing, names, model.training_info)
    page = ("-m", "kansformer.web", "--weights", weights, "--device", "cpu")
    with served([*page, "--examples", DIGIT.parent], ROOT) as (address, _):
        yield address


IN_SIGHT = """
() => [...document.querySelectorAll(SELECTOR)].some(element => {
  const box = element.getBoundingClientRect();
  return box.height && box.top >= 0 && box.bottom <= innerHeight && box.right <= innerWidth;
})
"""


@needs_chromium
@pytest.mark.parametrize(("width", "height"), [(390, 600), (1280, 900)])
@pytest.mark.parametrize("page", ["address", "long_names"])
def test_the_answer_is_in_sight_after_an_upload(
    browser: "Browser", pictures: Path, width: int, height: int, page: str,
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    def is_in_sight(selector: str) -> None:
        condition = IN_SIGHT.replace("SELECTOR", repr(selector))
        visited.page.wait_for_function(condition, timeout=SOON)

    with visit(browser, request.getfixturevalue(page), width, height) as visited:
        upload = visited.page.set_input_files
        upload("#picture input[type=file]", pictures / "eight.png")
        is_in_sight("#answer h2")
        assert visited.overflow() <= 0
        visited.page.get_by_label("Remove Image").click()
        visited.page.wait_for_selector("#functions figure", state="hidden")
        upload("#picture input[type=file]", pictures / "<b>broken.png")
        is_in_sight("#message [role=alert]")
        visited.page.get_by_role("tab", name="Several pictures").click()
        upload("#files input[type=file]", [pictures / "eight.png", pictures / "notes.txt"])
        is_in_sight("#answers tbody tr")
        assert visited.overflow() <= 0


@needs_chromium
def test_the_browser_refuses_to_contact_other_servers(browser: "Browser", address: str) -> None:
    with visit(browser, address) as visited:
        outcome = visited.page.evaluate(
            "fetch('http://127.0.0.2:9/').then(() => 'went out', error => String(error))"
        )
        assert "went out" not in outcome
        assert any("Content Security Policy" in error for error in visited.errors)


def test_json_equals_that_of_predict(address: str, pictures: Path) -> None:
    names = sorted(path.name for path in pictures.iterdir())
    assert len(names) == 5
    done = subprocess.run(
        [sys.executable, ROOT / "predict.py", *names, "--weights", DIGITS, "--json", "--topk", "3",
         "--device", "cpu"],
        cwd=pictures, capture_output=True, text=True, check=True,
    )  # fmt: skip
    status, text = post(
        f"{address}/predict?topk=3", [(name, (pictures / name).read_bytes()) for name in names]
    )
    assert status == 200
    assert text == done.stdout


def test_bad_requests_get_one_line(address: str) -> None:
    predict = f"{address}/predict"
    status, text = post(predict, [("a.txt", b"no picture")])
    (answer,) = json.loads(text)
    assert (status, answer.keys()) == (422, {"path", "error"})
    for response, expected, words in (
        (post(predict, []), 400, "no files"),
        (post(f"{predict}?topk=0", [("a.png", b"")]), 400, "topk must be at least 1"),
        (post(predict, [("a.png", bytes(2**25))]), 413, "more than 33,554,432 bytes"),
    ):
        status, text = response
        assert status == expected
        assert words in json.loads(text)["error"]


def test_health_and_no_other_endpoints(address: str) -> None:
    def get(path: str) -> dict[str, object]:
        with urllib.request.urlopen(f"{address}/{path}") as answer:
            return json.load(answer)

    health = get("health")
    assert (health["status"], health["classes"]) == ("ok", list("0123456789"))
    assert get("gradio_api/info")["named_endpoints"] == {}
    for path in ("docs", "redoc", "openapi.json"):
        with pytest.raises(urllib.error.HTTPError, match="404") as caught:
            get(path)
        caught.value.close()


def test_ctrl_c_stops_it_quietly_and_deletes_uploads(tmp_path: Path) -> None:
    with served(PAGE, ROOT, TMPDIR=str(tmp_path)) as (address, process):
        status, text = post(f"{address}/gradio_api/upload", [("a.txt", b"something private")])
        assert status == 200
        (uploaded,) = map(Path, json.loads(text))
        assert uploaded.read_bytes() == b"something private"
        assert tmp_path in uploaded.parents
        # a page that is still open must not delay the end
        with urllib.request.urlopen(f"{address}/gradio_api/heartbeat/somebody") as heart:
            assert heart.status == 200
            assert stop(process, signal.SIGINT) == (130, "stopped\n")
    assert list(tmp_path.iterdir()) == []


def test_a_port_in_use_gives_one_line(address: str, command: Command) -> None:
    port = urlsplit(address).port
    status, out, err = command("kansformer.web.__main__", *PAGE[2:], "--port", port)
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert f"cannot listen on 127.0.0.1, port {port}" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--port", "70000"), "--port must be between 0 and 65535"),
        (("--host", "192.0.2.1"), "cannot listen on 192.0.2.1, port 7860"),
        (("--host", "no.such.invalid"), "choose another --port or --host"),
        (("--examples", "nowhere"), "nowhere: no folder with pictures in it"),
        (("--weights", "missing"), "missing: no such weights file"),
    ],
)
def test_wrong_use_is_one_line(command: Command, arguments: tuple[str, ...], words: str) -> None:
    status, out, err = command("kansformer.web.__main__", *PAGE[2:], *arguments)
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert words in err


def test_without_gradio_the_error_names_the_remedy(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "kansformer.web.app", raising=False)
    monkeypatch.setitem(sys.modules, "gradio", None)
    for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "")  # so that what the command sets does not outlive the test
    status, out, err = command("kansformer.web.__main__", *PAGE[2:], "--port", 0)
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert "pip install -r requirements-web.txt" in err
