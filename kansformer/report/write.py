"""Writes a run's report: report.html, and its plots as PNG files."""

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
from kansformer.report.contents import Contents, collect

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_report(folder: Path, data: PictureData, device: str = "cpu") -> Path:
    """Writes report.html and plots/ into the folder of a finished run.

    The page is one file that needs no network and no script. Of more than 20,000 pictures, a random
    sample is evaluated.

    Args:
        folder: contains best.safetensors, metrics.jsonl and summary.json.
        data: the data of the run.
        device: device for the predictions.

    Returns:
        The path of the page.

    Raises:
        UserError: a missing or damaged file of the run, or data that do not fit the model.
    """
    contents = collect(folder, data, device)
    plots_folder = folder / "plots"
    make_output_folder(plots_folder)
    names, drawable = contents.class_names, drawable_names(contents.class_names)
    drawn = {}
    for name, figure, alt_text in draw(contents, names):
        drawn[name] = as_svg(figure, alt_text)
        if drawable == names:
            write_bytes(plots_folder / f"{name}.png", as_png(figure))
    if drawable != names:  # the reader's browser may have fonts that this machine lacks
        for name, figure, _ in draw(contents, drawable):
            write_bytes(plots_folder / f"{name}.png", as_png(figure))
    if contents.samples:
        sheet = page.contact_sheet(contents.samples)
        write_bytes(plots_folder / "augmented.png", page.packed(sheet, "PNG"))
    if contents.mistakes:
        rows, answers = page.mistakes_in_rows(contents.mistakes)
        renaming = dict(zip(names, drawable, strict=True))
        renamed = [answer.renamed(renaming) for answer in answers]
        figure = blocks_drawing.draw_attention(rows, renamed)
        write_bytes(plots_folder / "mistakes.png", as_png(figure))
    path = folder / "report.html"
    write_bytes(path, page.render(contents, drawn).encode())
    return path


def draw(contents: Contents, class_names: Sequence[str]) -> "Iterator[tuple[str, Figure, str]]":
    """Name, figure and alternative text of every plot; figures use these class names."""
    figures = contents.figures
    per_class = [
        {**row, "class": name} for row, name in zip(figures["per_class"], class_names, strict=True)
    ]
    history = contents.history
    curves = plots.draw_history(history, contents.summary["best_epoch"])
    yield "curves", curves, plots.history_in_words(history)
    yield (
        "confusion",
        plots.draw_confusion(np.array(figures["confusion"]), class_names, narrow=True),
        plots.confusion_in_words(figures),
    )
    yield "classes", plots.draw_classes(per_class), plots.classes_in_words(figures)
    yield (
        "calibration",
        plots.draw_reliability(contents.reliability, f"ECE {figures['ece']:.3f}"),
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
