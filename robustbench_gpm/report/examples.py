"""Adversarial examples: the clean image, the adversarial one, and what was changed."""

from __future__ import annotations

import textwrap
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..records import Example, Records
from .choice import MOST_ROWS, chosen
from .panels import set_title, show_difference, show_flow, show_image
from .saving import save
from .words import attacked_with, class_name, colour

WIDTH = 6.6  # inches
LEGEND = (
    "difference: red is brighter, blue darker, in the channel that changed most\n"
    "flow: arrows go where a pixel is read from"
)


def draw_examples(records: Records, folder: Path, most: int = MOST_ROWS) -> Path | None:
    """Draw some examples into `folder/examples.png`; None where the records hold none.

    Of each attack up to `most` are drawn, eight in all, the most telling first: those that fell at
    the budget which about half of the samples withstand.

    A row is the clean image, the adversarial one, and what changed: for an attack on intensities
    the signed difference (of the channel that changed most), for a deformation its flow as arrows
    over the clean image, each towards where the pixel is read from. The scale is stated. With
    several attacks each has its share of the rows.
    """
    examples = chosen(records, records.examples, most)
    if not examples:
        return None
    figure = Figure(figsize=(WIDTH, 2.3 * len(examples) + 0.6), layout="constrained")
    figure.suptitle(textwrap.shorten(records.model, 70, placeholder="…"), fontsize=11)
    figure.supxlabel(LEGEND, fontsize=8)
    rows = figure.subplots(len(examples), 3, squeeze=False)
    for (clean, adversarial, change), example in zip(rows, examples, strict=True):
        _draw_row(clean, adversarial, change, example, records)
    return save(figure, folder / "examples.png")


def _draw_row(
    clean: Axes, adversarial: Axes, change: Axes, example: Example, records: Records
) -> None:
    def said(panel: Axes, heading: str, prediction: int, confidence: float) -> None:
        attacked = panel is adversarial
        text = f"{heading}\npredicted {class_name(records, prediction)}, {100 * confidence:.0f}%"
        set_title(panel, text, colour(example, attacked=attacked))

    truth = f"clean: {class_name(records, example.label)}"
    show_image(clean, example.clean)
    said(clean, truth, example.clean_prediction, example.clean_confidence)
    show_image(adversarial, example.adversarial)
    said(adversarial, attacked_with(records, example), example.prediction, example.confidence)
    if example.flow is None:
        show_difference(change, example.adversarial - example.clean)
    else:
        show_flow(change, example.clean, example.flow)
