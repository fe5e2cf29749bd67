"""Writes a run's report: report.html, and its plots as PNGs."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kansformer.data import PictureData
from kansformer.evaluate import plots
from kansformer.figures import as_png, as_svg, drawable_names
from kansformer.files import make_output_folder, write_bytes
from kansformer.interpret import blocks_drawing
from kansformer.report import page
from kansformer.report.contents import Contents, look

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_report(folder: Path, data: PictureData, device: str = "cpu") -> Path:
    """Writes report.html and plots/ into the folder of a finished run.

    The page is one file that needs no network and no script. A run of hundreds of thousands of
    pictures has a report on some of them, see `contents`.

    Args:
        folder: with best.safetensors, metrics.jsonl and summary.json.
        data: what the run was trained on.
        device: of the predictions.

    Returns:
        The page.

    Raises:
        UserError: a file of the run, or data that do not fit it.
    """
    contents = look(folder, data, device)
    plots_folder = folder / "plots"
    make_output_folder(plots_folder)
    names, drawable = contents.class_names, drawable_names(contents.class_names)
    drawn = {}
    for name, figure, words in draw(contents, names):
        drawn[name] = as_svg(figure, words)
        if drawable == names:
            write_bytes(plots_folder / f"{name}.png", as_png(figure))
    if drawable != names:  # the reader's browser may have fonts that this machine has not
        for name, figure, _ in draw(contents, drawable):
            write_bytes(plots_folder / f"{name}.png", as_png(figure))
    if contents.samples:
        sheet = page.contact_sheet(contents.samples)
        write_bytes(plots_folder / "augmented.png", page.packed(sheet, "PNG"))
    if contents.mistakes:
        rows, answers = page.mistakes_in_rows(contents.mistakes)
        shown = dict(zip(names, drawable, strict=True))
        figure = blocks_drawing.draw_attention(rows, [own.renamed(shown) for own in answers])
        write_bytes(plots_folder / "mistakes.png", as_png(figure))
    path = folder / "report.html"
    write_bytes(path, page.render(contents, drawn).encode())
    return path


def draw(contents: Contents, class_names: Sequence[str]) -> "Iterator[tuple[str, Figure, str]]":
    """Name, figure and words of every plot; the figures call the classes by these names."""
    found = contents.figures
    per_class = [
        {**row, "class": name} for row, name in zip(found["per_class"], class_names, strict=True)
    ]
    history = contents.history
    curves = plots.draw_history(history, contents.summary["best_epoch"])
    yield "curves", curves, plots.history_in_words(history)
    yield (
        "confusion",
        plots.draw_confusion(np.array(found["confusion"]), class_names, narrow=True),
        plots.confusion_in_words(found),
    )
    yield "classes", plots.draw_classes(per_class), plots.classes_in_words(found)
    yield (
        "calibration",
        plots.draw_reliability(contents.reliability, f"ECE {found['ece']:.3f}"),
        plots.reliability_in_words(contents.reliability),
    )
    if contents.inside is None:
        return
    facts = contents.inside.facts
    yield (
        "layers",
        blocks_drawing.draw_overview(facts, columns=1),
        blocks_drawing.overview_alt_text(facts),
    )
    for block, layers in contents.inside.curves.items():
        yield (
            f"functions-{block}",
            blocks_drawing.draw_functions(block, layers, columns=2),
            blocks_drawing.functions_alt_text(block, layers),
        )
