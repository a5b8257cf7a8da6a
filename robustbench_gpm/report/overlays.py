"""What stands on images: masks, boxes, and how likely each class is; each in a panel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from .palette import NOT_COUNTED, Classes, readable_on
from .panels import frame, show_image

SURE = 0.5  # from this score on a box is drawn
COVER = 0.75  # share of a class's colour in what is drawn on its pixels; the rest is the image
LINE = 1.3  # points
MOST_LABELLED = 8  # boxes that can be told from each other by words
SMALL = 5.0  # points
MOST_BARS = 6  # classes
BEFORE, AFTER = "#0072B2", "#D55E00"
_Image = NDArray[np.float32]


def show_mask(panel: Axes, image: _Image, mask: NDArray[Any], classes: Classes, void: int) -> None:
    """An image (C,H,W) with a mask (H,W) of classes over it in their colours.

    The image beneath is grey. The background is left as it is, and where the mask is `void` it is
    grey.
    """
    pixels = np.repeat(image.mean(0)[..., None], 3, axis=2)
    for kind in np.unique(mask.astype(int)):
        if kind != void and not classes.covers(kind):
            continue
        here, cover = mask == kind, 1.0 if kind == void else COVER
        colour = to_rgb(NOT_COUNTED) if kind == void else classes.colour(kind)
        pixels[here] = (1 - cover) * pixels[here] + cover * np.array(colour)
    show_image(panel, pixels.transpose(2, 0, 1).astype(np.float32))


def show_boxes(panel: Axes, image: _Image, boxes: NDArray[Any], classes: Classes) -> None:
    """An image with boxes: labels (M,5), or predictions (D,6), drawn from a score of a half on.

    A few boxes are named, each with its score. An object that is to be ignored, of class -2 - c, is
    dashed.
    """
    show_image(panel, image)
    rows = drawn_boxes(boxes)
    for row in rows[::-1]:  # the surest on top
        (left, top, right, bottom), kind = row[:4], int(row[-1])
        ignored = kind < 0
        colour = to_rgb(NOT_COUNTED) if ignored else classes.colour(kind)
        outline = Rectangle(
            (left - 0.5, top - 0.5),  # pixel centres are whole numbers in a picture
            right - left,
            bottom - top,
            fill=False,
            edgecolor=colour,
            linewidth=LINE,
            linestyle=(0, (2, 2)) if ignored else "-",
        )
        if not ignored:  # told from an image of any colour
            outline.set_path_effects([withStroke(linewidth=LINE + 0.9, foreground="black")])
        panel.add_patch(outline)
        if len(rows) <= MOST_LABELLED and not ignored:
            score = f" {100 * row[4]:.0f}%" if len(row) == 6 else ""
            _name_box(panel, row[:4], image.shape[-2:], classes.name(kind, 12) + score, colour)


def drawn_boxes(boxes: NDArray[Any]) -> NDArray[Any]:
    """The rows that are drawn: no padding, and of predictions the sure ones, surest first."""
    rows: NDArray[Any] = boxes[boxes[:, -1] != -1]
    if boxes.shape[1] == 6:
        rows = rows[rows[:, 4] >= SURE]
        rows = rows[np.argsort(-rows[:, 4], kind="stable")]
    return rows


def _name_box(
    panel: Axes,
    box: NDArray[Any],
    size: Sequence[int],
    text: str,
    colour: tuple[float, float, float],
) -> None:
    """A word above a box, or below it at the top of the image; on the side with more room."""
    (left, top, right, bottom), (height, width) = box, size
    to_the_left = left + right > width
    above = top > 0.1 * height
    panel.text(
        (right if to_the_left else left) - 0.5,
        (top if above else bottom) - 0.5,
        text,
        ha="right" if to_the_left else "left",
        va="bottom" if above else "top",
        fontsize=SMALL,
        color=readable_on(colour),
        clip_on=True,
        bbox={"facecolor": colour, "edgecolor": "none", "pad": 0.6},
    )


def show_bars(
    panel: Axes,
    truth: NDArray[Any],
    before: NDArray[Any],
    after: NDArray[Any],
    classes: Classes,
) -> None:
    """How likely classes are (K,) before and after an attack: those that hold, then what changed.

    Those that hold, `truth` being 1, are in bold.
    """
    shown = shown_bars(truth, before, after)
    for place, kind in enumerate(shown):
        weight = "bold" if truth[kind] > 0.5 else "normal"
        y = 3 * place
        panel.text(0.01, y, classes.name(kind, 34), fontsize=SMALL + 1, weight=weight, va="center")
        panel.barh([y + 0.85], [before[kind]], height=0.6, color=BEFORE)
        panel.barh([y + 1.5], [after[kind]], height=0.6, color=AFTER)
    frame(panel)
    panel.set_xlim(0, 1)
    panel.set_ylim(3 * len(shown) - 0.9, -1)
    panel.axvline(SURE, color="0.6", linewidth=0.6, linestyle=(0, (2, 2)), zorder=0)


def shown_bars(truth: NDArray[Any], before: NDArray[Any], after: NDArray[Any]) -> list[int]:
    """Up to MOST_BARS classes: those that hold, and those whose probability changed most."""
    hold, change = truth > 0.5, np.abs(after - before)
    order = np.lexsort((np.arange(len(truth)), -change, ~hold))
    return [int(kind) for kind in order[:MOST_BARS]]
