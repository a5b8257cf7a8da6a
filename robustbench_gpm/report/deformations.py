"""Deformations: the image, where its pixels move to and how far, the outcome, and the change."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..records import Example, Records
from .choice import MOST_ROWS, chosen
from .panels import set_title, show_difference, show_displacement, show_flow, show_image
from .saving import save
from .words import LETTERS, attacked_with, class_name, colour, verdict

WIDTH = 9.0  # inches
LEGEND = (
    "right, wrong: the model's prediction and its confidence\n"
    "flow: arrows go where a pixel is read from; the largest move is along either axis, the length "
    "is √(right² + down²)\n"
    "difference: deformed less clean, red is brighter, blue darker, in the channel that changed "
    "most"
)


def draw_deformations(records: Records, folder: Path, most: int = MOST_ROWS) -> Path | None:
    """Draw what moved into `folder/deformations.png`; None where the records hold no flow.

    Examples are chosen as for `examples.png`, among those with a flow. A row is the clean image,
    the flow as arrows over it, the length of the flow in pixels, the deformed image, and the
    signed difference of the two. A wrong prediction is said to be wrong, and coloured.
    """
    moved = [example for example in records.examples if example.flow is not None]
    examples = chosen(records, moved, most)
    if not examples:
        return None
    extra = sum(attacked_with(records, e, LETTERS).count("\n") for e in examples)
    height = 2.05 * len(examples) + 0.14 * extra + 0.9
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    figure.suptitle(textwrap.shorten(records.model, 90, placeholder="…"), fontsize=11)
    figure.supxlabel(LEGEND, fontsize=8)
    rows = figure.subplots(len(examples), 5, squeeze=False)
    for panels, example in zip(rows, examples, strict=True):
        _draw_row(list(panels), example, records)
    return save(figure, folder / "deformations.png")


def _draw_row(panels: list[Axes], example: Example, records: Records) -> None:
    clean, arrows, lengths, deformed, change = panels

    def shown(panel: Axes, image: NDArray[np.float32], heading: str, *, attacked: bool) -> None:
        show_image(panel, image)
        text = f"{heading}\n{verdict(records, example, attacked=attacked)}"
        set_title(panel, text, colour(example, attacked=attacked))

    truth = f"clean: {class_name(records, example.label)}"
    shown(clean, example.clean, truth, attacked=False)
    assert example.flow is not None
    show_flow(arrows, example.clean, example.flow)
    show_displacement(lengths, example.flow)
    attack = attacked_with(records, example, LETTERS)
    shown(deformed, example.adversarial, attack, attacked=True)
    show_difference(change, example.adversarial - example.clean)
