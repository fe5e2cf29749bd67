"""The page itself, in gradio."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from kansformer.data import open_image
from kansformer.errors import UserError, one_line
from kansformer.web import html
from kansformer.web.service import Service

KEEP_SECONDS = 600  # uploads are removed after this, and all of them at the end
MOST_FILES = 100
MOST_CLASSES = 10  # bars to show
SANS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif")
MONO = ("ui-monospace", "Menlo", "Consolas", "monospace")
# names of system fonts only: others would be asked of a server elsewhere
THEME = gr.themes.Default(primary_hue="blue", font=SANS, font_mono=MONO)
STYLE = html.STYLE + ".gradio-container { max-width: 1100px !important; margin: 0 auto }"
PRIVATE: dict[str, Any] = {
    "api_visibility": "private",  # the page alone calls it; others have /predict
    "concurrency_limit": 1,
    "concurrency_id": "model",
}


class Upload(gr.Image):
    """A picture as it was uploaded: gradio's own reading would turn it before we see it."""

    is_template = True  # drawn as gr.Image

    def preprocess(self, payload: Any) -> Any:
        """The uploaded file's description, with its `path` and `orig_name`."""
        return payload


class Uploads(gr.File):
    """Files as they were uploaded, with their own names."""

    is_template = True

    def preprocess(self, payload: Any) -> Any:
        """The description of each uploaded file, with its `path` and `orig_name`."""
        return payload


def make_page(service: Service, examples: Sequence[str], stays_here: bool) -> gr.Blocks:
    """The page of a model.

    Args:
        examples: pictures to offer.
        stays_here: whether nobody but this computer can reach the page.
    """
    names = service.predictor.class_names

    def look(picture: Any) -> tuple[Any, ...]:
        if picture is None:
            return gr.HTML("", visible=False), None, None, ""
        try:
            found = service.look(picture.path, picture.orig_name or "the picture")
        except UserError as error:
            return gr.HTML(html.message(one_line(error)), visible=True), None, None, ""
        chances = {row["class"]: row["probability"] for row in found.top}
        shown = (
            html.no_functions() if found.decision is None else html.functions(found.decision, names)
        )
        return gr.HTML("", visible=False), chances, found.attention, shown

    def classify(files: Any) -> str:
        if not files:
            return ""
        if len(files.root) > MOST_FILES:
            return html.message(f"{len(files.root)} files: give at most {MOST_FILES} at once")
        given = [(file.orig_name or Path(file.path).name, Path(file.path)) for file in files.root]
        answers = service.table(given)
        small = [
            html.thumbnail(open_image(path, at_least=html.THUMBNAIL)) if "top" in answer else None
            for (_, path), answer in zip(given, answers, strict=True)
        ]
        return html.table(answers, small)

    with gr.Blocks(
        title=f"{service.name}: what is in this picture?",
        analytics_enabled=False,
        delete_cache=(60, KEEP_SECONDS),
    ) as page:
        where = "on this computer" if stays_here else "on the computer that runs this page"
        gr.Markdown(
            f"# What is in this picture?\n`{service.name}` tells {len(names)} classes apart, and"
            f" names one of them whatever the picture shows. Pictures stay {where}, and are removed"
            f" from it {KEEP_SECONDS // 60} minutes later."
        )
        with gr.Tab("One picture"):
            wrong = gr.HTML(visible=False, elem_id="message")
            with gr.Row():
                with gr.Column():
                    picture = Upload(
                        label="Drop, paste or photograph a picture",
                        sources=["upload", "clipboard", "webcam"],
                        height=340,
                        buttons=[],
                        elem_id="picture",
                    )
                    if examples:
                        gr.Examples(
                            [[path] for path in examples], [picture], label="Or try one of these",
                            examples_per_page=len(examples), cache_examples=False,
                            api_visibility="private",
                        )  # fmt: skip
                with gr.Column():
                    label = gr.Label(label="Answer", num_top_classes=MOST_CLASSES, elem_id="answer")
            with gr.Row():
                with gr.Column(scale=2, min_width=280):
                    attention = gr.Image(
                        label="Where the model looks (attention)", interactive=False, height=340,
                        format="png", buttons=["download", "fullscreen"], elem_id="attention",
                    )  # fmt: skip
                with gr.Column(scale=3, min_width=280):
                    decided = gr.HTML(elem_id="functions")
            picture.change(look, [picture], [wrong, label, attention, decided], **PRIVATE)
        with gr.Tab("Several pictures"):
            files = Uploads(
                label=f"Drop up to {MOST_FILES} pictures", file_count="multiple", height=160,
                elem_id="files",
            )  # fmt: skip
            answers = gr.HTML(elem_id="answers")
            files.change(classify, [files], [answers], **PRIVATE)
    return page.queue(max_size=64, default_concurrency_limit=1)
