"""The page, in gradio."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from kansformer.errors import UserError, one_line
from kansformer.web import html
from kansformer.web.service import Service
from kansformer.words import number

KEEP_SECONDS = 600  # uploads are deleted after this, and when the server stops
MOST_FILES = 100
MOST_CLASSES = 10  # bars to show
# on a phone the answer is below the picture: scrolls to what an upload has changed
SHOW = """() => requestAnimationFrame(() => requestAnimationFrame(() => {
  const shown = ["#message [role=alert]", "#answer h2", "#answers .kan"]
    .map(name => document.querySelector(name)).find(element => element?.offsetParent);
  shown?.closest(".block")?.scrollIntoView({block: "nearest"});
}))"""
SANS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif")
MONO = ("ui-monospace", "Menlo", "Consolas", "monospace")
# system fonts only: gradio would load others from another server
THEME = gr.themes.Default(primary_hue="blue", font=SANS, font_mono=MONO)
STYLE = (
    html.STYLE
    + """
.gradio-container { max-width: 1100px !important; margin: 0 auto }
#answer h2, #answer .text { overflow-wrap: anywhere; min-width: 0 }
#examples .grid-wrap { min-height: 0; height: auto; padding-top: 1.6rem }
#examples .grid-container { grid-template-columns: repeat(auto-fill, 4.5rem); padding: .4rem }
#examples .gallery-item, #examples button { width: 4.5rem; height: 4.5rem; min-height: 0 }
"""
)
PRIVATE: dict[str, Any] = {
    "api_visibility": "private",  # only the page calls it; programs use /predict
    "concurrency_limit": 1,
    "concurrency_id": "model",
}


def as_uploaded(component: gr.Image | gr.File) -> None:
    """Makes a component pass on its files as uploaded, with path and name.

    By default gradio would rotate and convert pictures, and report unreadable files itself.
    """
    component.preprocess = lambda payload: payload  # type: ignore[method-assign]


def make_page(service: Service, examples: Sequence[str], is_local: bool) -> gr.Blocks:
    """The page of a model.

    Args:
        examples: paths of pictures to offer.
        is_local: whether only this computer can reach the page.

    Raises:
        UserError: an example cannot be read.
    """
    names = service.predictor.class_names
    preprocessing = service.predictor.model.preprocessing

    def look(picture: Any) -> tuple[Any, ...]:
        nothing = None, gr.Row(visible=False), None, ""
        if picture is None:
            return gr.HTML("", visible=False), *nothing
        try:
            result = service.look(picture.path, picture.orig_name or "the picture")
        except UserError as error:
            return gr.HTML(html.message(one_line(error)), visible=True), *nothing
        probabilities = {row["class"]: row["probability"] for row in result.top}
        if result.decision is None:
            functions = html.no_functions()
        else:
            functions = html.functions(result.decision, names)
        hidden, visible = gr.HTML("", visible=False), gr.Row(visible=True)
        return hidden, probabilities, visible, result.attention, functions

    def open_example(event: gr.SelectData) -> Image.Image:
        return preprocessing.open(examples[event.index])

    def classify(files: Any) -> str:
        if not files:
            return ""
        if len(files.root) > MOST_FILES:
            return html.message(f"{len(files.root)} files: choose at most {MOST_FILES} at a time")
        named = [(file.orig_name or Path(file.path).name, Path(file.path)) for file in files.root]
        answers = service.table(named)
        thumbnails = [
            html.thumbnail(preprocessing.open(path, at_least=html.THUMBNAIL))
            if "top" in answer
            else None
            for (_, path), answer in zip(named, answers, strict=True)
        ]
        return html.table(answers, thumbnails)

    with gr.Blocks(
        title=f"{service.name}: what is in this picture?",
        analytics_enabled=False,
        delete_cache=(60, KEEP_SECONDS),
    ) as page:
        where = "on this computer" if is_local else "on the computer that runs this page"
        gr.Markdown(
            f"# What is in this picture?\n`{service.name}` knows {number(len(names), 'class')} and"
            " always names one of them, whatever the picture shows. Pictures stay"
            f" {where} and are deleted after {KEEP_SECONDS // 60} minutes."
        )
        with gr.Tab("One picture"):
            error_message = gr.HTML(visible=False, elem_id="message")
            with gr.Row():
                with gr.Column():
                    picture = gr.Image(
                        label="Drop or paste a picture, or take a photo",
                        sources=["upload", "clipboard", "webcam"],
                        height=340,
                        format="png",  # lossless, for examples
                        buttons=[],
                        elem_id="picture",
                    )
                    as_uploaded(picture)
                    if examples:
                        offered = gr.Gallery(
                            [html.thumbnail(preprocessing.open(path)) for path in examples],
                            label="Or try one of these", object_fit="cover", allow_preview=False,
                            interactive=False, buttons=[], elem_id="examples",
                        )  # fmt: skip
                        offered.select(open_example, None, [picture], **PRIVATE)
                with gr.Column():
                    label = gr.Label(label="Answer", num_top_classes=MOST_CLASSES, elem_id="answer")
            with gr.Row(visible=False) as reasons:
                with gr.Column(scale=2, min_width=280):
                    attention = gr.Image(
                        label="Where the model looks (attention)", interactive=False, height=340,
                        format="png", buttons=["download", "fullscreen"], elem_id="attention",
                    )  # fmt: skip
                with gr.Column(scale=3, min_width=280):
                    contributions = gr.HTML(elem_id="functions")
            outputs = [error_message, label, reasons, attention, contributions]
            picture.change(look, [picture], outputs, **PRIVATE).then(None, js=SHOW)
        with gr.Tab("Several pictures"):
            files = gr.File(
                label=f"Drop up to {MOST_FILES} pictures", file_count="multiple", height=160,
                elem_id="files",
            )  # fmt: skip
            as_uploaded(files)
            answers = gr.HTML(elem_id="answers")
            files.change(classify, [files], [answers], **PRIVATE).then(None, js=SHOW)
    return page.queue(max_size=64, default_concurrency_limit=1)
