"""The web application: the page at /, and the model as JSON at /predict and /health."""

import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import anyio.to_thread
import gradio as gr
from fastapi import FastAPI, Request, Response
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kansformer.web.page import MOST_FILES, STYLE, THEME, make_page
from kansformer.web.service import Service

MOST_BYTES = 32 * 2**20  # limit of a file on the page, and of a request to /predict
# forbids the browser to load from, or send to, any other server
POLICY = "; ".join((
    "default-src 'self'", "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
    "style-src 'self' 'unsafe-inline'", "img-src 'self' data: blob:", "font-src 'self' data:",
    "media-src 'self' data: blob:", "connect-src 'self' data: blob:", "worker-src 'self' blob:",
    "object-src 'none'", "base-uri 'self'", "form-action 'self'",
))  # fmt: skip
HEADERS = {
    "content-security-policy": POLICY,
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def make_app(service: Service, examples: Sequence[str] = (), is_local: bool = True) -> FastAPI:
    """The application.

    Args:
        examples: paths of pictures that the page offers.
        is_local: whether only this computer can reach the page.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)  # their pages load from a CDN

    @app.get("/health")
    def health() -> dict[str, Any]:
        predictor = service.predictor
        return {
            "status": "ok",
            "weights": service.name,
            "classes": list(predictor.class_names),
            "device": str(predictor.device),
        }

    @app.post("/predict")
    async def predict(request: Request, topk: int = 5) -> Response:
        """Classifies the files of a multipart form, with the output of `predict.py --json`."""
        if topk < 1:
            return _json({"error": f"topk must be at least 1, not {topk}"}, 400)
        limited = Request(request.scope, _limited(request.receive))
        try:
            async with limited.form(max_files=MOST_FILES) as form:
                parts = [part for _, part in form.multi_items() if isinstance(part, UploadFile)]
                files = [(part.filename or "unnamed", await part.read()) for part in parts]
        except HTTPException as error:
            return _json({"error": str(error.detail)}, error.status_code)
        if not files:
            return _json({"error": "no files; send them as a form: curl -F file=@PICTURE"}, 400)
        answers = await anyio.to_thread.run_sync(service.answers, files, topk)
        return _json(answers, 200 if any("top" in answer for answer in answers) else 422)

    gr.mount_gradio_app(
        app, make_page(service, examples, is_local), path="/", theme=THEME, css=STYLE,
        max_file_size=MOST_BYTES, footer_links=[], run_history=False, show_error=False,
        enable_monitoring=False, ssr_mode=False, mcp_server=False, pwa=False,
        app_kwargs={"openapi_url": None},
    )  # fmt: skip
    app.add_middleware(_WithHeaders)
    return app


def _json(value: Any, status: int) -> Response:
    """A response with the same JSON formatting as predict.py."""
    return Response(json.dumps(value, indent=1) + "\n", status, media_type="application/json")


def _limited(receive: Receive) -> Callable[[], Awaitable[Message]]:
    """Wraps `receive` so that a request of more than `MOST_BYTES` fails with status 413."""
    total = 0

    async def limited() -> Message:
        nonlocal total
        message = await receive()
        total += len(message.get("body", b""))
        if total > MOST_BYTES:
            raise HTTPException(413, f"more than {MOST_BYTES:,} bytes; send fewer pictures at once")
        return message

    return limited


class _WithHeaders:
    """Adds `HEADERS` to every response."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_more(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message.get("headers", []), *added]
            await send(message)

        await self.app(scope, receive, send_more)
