"""Pictures of attacked samples: the image with its labels, what was predicted before and after."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray

from ..masks import VOID
from ..report.panels import set_title, show_difference, show_flow, show_image
from ..report.saving import save
from .batch import Picture
from .records import GradedRecords

WIDTH = 2.3  # inches a panel
SURE = 0.5  # boxes below this score are not drawn
MOST_NAMED = 20  # classes that a legend can hold

Overlay = Callable[[Axes, NDArray[np.float32], NDArray[Any], GradedRecords], None]


def draw_predictions(
    records: GradedRecords, pictures: Mapping[str, Sequence[Picture]], folder: Path
) -> Path | None:
    """Draw `folder/examples.png`, a row a picture; None where there are none.

    A row: the image with its true labels, the prediction on it, the attacked image with the
    prediction on that, and what was changed: the difference, or the flow as arrows.
    """
    rows = [(name, picture) for name, each in pictures.items() for picture in each]
    if not rows:
        return None
    height, width = rows[0][1].image.shape[-2:]
    size = (4 * WIDTH, len(rows) * (WIDTH * height / width + 0.5) + 0.8)
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(textwrap.shorten(records.model, 70, placeholder="…"), fontsize=11)
    overlay = OVERLAYS[records.task]
    for panels, (name, picture) in zip(
        figure.subplots(len(rows), 4, squeeze=False), rows, strict=True
    ):
        label = _label(records, name, picture.budget)
        shown = (
            ("labels", picture.image, picture.truth),
            ("predicted", picture.image, picture.clean),
            (f"predicted under {name}\nat {label}", picture.adversarial, picture.attacked),
        )
        for panel, (title, image, labels) in zip(panels, shown, strict=False):
            overlay(panel, image, labels, records)
            set_title(panel, title)
        if picture.flow.size:
            show_flow(panels[3], picture.image, picture.flow)
        else:
            show_difference(panels[3], picture.adversarial - picture.image)
    _legend(figure, records)
    return save(figure, folder / "examples.png")


def _label(records: GradedRecords, name: str, budget: float) -> str:
    attack = next(attack for attack in records.attacks if attack.name == name)
    return attack.labels[attack.budgets.index(budget)]


def show_mask(
    panel: Axes, image: NDArray[np.float32], mask: NDArray[Any], records: GradedRecords
) -> None:
    """An image with a mask (H,W) of classes in colours over it; void is left as it is."""
    show_image(panel, image)
    colours = np.array([colour_of(k, records) for k in range(len(records.classes))])
    known = mask != VOID
    shades = np.zeros((*mask.shape, 4))
    shades[known, :3] = colours[mask[known].astype(int)]
    shades[known, 3] = 0.6
    panel.imshow(shades, interpolation="nearest")


def show_boxes(
    panel: Axes, image: NDArray[np.float32], boxes: NDArray[Any], records: GradedRecords
) -> None:
    """An image with boxes: labels (M,5), or predictions (D,6) with their scores."""
    show_image(panel, image)
    for row in boxes:
        (left, top, right, bottom), kind = row[:4], int(row[-1])
        if kind < 0 or (len(row) == 6 and row[4] < SURE):
            continue
        colour = colour_of(kind, records)
        corner = (left - 0.5, top - 0.5)  # pixel centres are whole numbers in a picture
        frame = Rectangle(corner, right - left, bottom - top, fill=False, color=colour, lw=1.4)
        panel.add_patch(frame)


def colour_of(kind: int, records: GradedRecords) -> tuple[float, float, float]:
    """A colour for a class."""
    few = len(records.classes) <= MOST_NAMED
    colours = mpl.colormaps["tab20" if few else "gist_ncar"]
    place = kind if few else (kind + 0.5) / len(records.classes)
    red, green, blue, _ = colours(place)
    return float(red), float(green), float(blue)


def _legend(figure: Figure, records: GradedRecords) -> None:
    if len(records.classes) > MOST_NAMED:
        return
    patches = [
        Patch(color=colour_of(k, records), label=name) for k, name in enumerate(records.classes)
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=6, fontsize=8, frameon=False)


def show_words(
    panel: Axes, image: NDArray[np.float32], shares: NDArray[Any], records: GradedRecords
) -> None:
    """An image with the classes (K,) that hold, or are given more than a half, beneath it."""
    show_image(panel, image)
    held = [name for name, share in zip(records.classes, shares, strict=True) if share > SURE]
    panel.set_xlabel(textwrap.fill(", ".join(held) or "none", 30), fontsize=7)


OVERLAYS: dict[str, Overlay] = {
    "segmentation": show_mask,
    "detection": show_boxes,
    "multilabel": show_words,
}
