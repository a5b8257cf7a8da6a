"""Pictures of attacked samples: what was so, what was predicted, and the same under attack."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from torch import Tensor

from ..masks import VOID
from ..report.overlays import AFTER, BEFORE, SURE, drawn_boxes, show_bars, show_boxes, show_mask
from ..report.palette import NOT_COUNTED, OTHERS, Classes, coloured
from ..report.panels import set_title, show_difference, show_flow, show_image
from ..report.saving import save
from ..tasks.detection_metric import quality
from ..tasks.segmentation_metric import confusion, image_iou
from .examples import Picture
from .records import GradedRecords
from .summary import task_of

PANEL, WIDE_PANEL = 1.75, 2.5  # inches; of six in a row, and of four
MOST_ROWS = 8
TWO_LINES = 1.5  # width for each height from which on a picture has two lines
MOST_NAMED = 24  # classes that a legend can hold
CHANGE = "difference: red is brighter, blue darker; flow: arrows go where a pixel is read from"

_Image = NDArray[np.float32]


@dataclass(frozen=True)
class Overlay:
    """Labels that stand on images: how they are drawn, which classes they show, how they score.

    `scored` takes a batch of predictions, one of labels and the number of classes.
    """

    show: Callable[[Axes, _Image, NDArray[Any], Classes], None]
    kinds: Callable[[NDArray[Any]], NDArray[Any]]
    score: str
    scored: Callable[[Tensor, Tensor, int], Tensor]
    caption: str


def _show_mask(panel: Axes, image: _Image, mask: NDArray[Any], classes: Classes) -> None:
    show_mask(panel, image, mask, classes, VOID)


OVERLAYS = {
    "segmentation": Overlay(
        _show_mask,
        np.ravel,
        "mean IoU",
        lambda found, y, classes: image_iou(confusion(found.long(), y.long(), classes)),
        CHANGE,
    ),
    "detection": Overlay(
        show_boxes,
        lambda boxes: drawn_boxes(boxes)[:, -1],
        "F1",
        lambda found, y, _: quality(found, y),
        f"boxes of a score of {100 * SURE:.0f}% or more; {CHANGE}",
    ),
}


def draw_predictions(records: GradedRecords, folder: Path) -> Path | None:
    """Draw `folder/examples.png`, a row a picture of the records; None where there are none.

    A row: the image, its true labels, the prediction on it; the attacked image, the prediction on
    that; and what was changed, the difference, or the flow as arrows. Above a prediction stands the
    sample's own score, against labels that moved along if the records' did. Where labels
    lie nowhere in the image, a row is the image, the attacked one, the change, and how likely
    classes are before and after. A row of images much wider than high has two lines. Of each attack
    there are as many rows as make eight in all, and at least one.
    """
    each = max(1, MOST_ROWS // max(1, sum(map(bool, records.pictures.values()))))
    shown = [(name, picture) for name, own in records.pictures.items() for picture in own[:each]]
    if not shown:
        return None
    overlay = OVERLAYS.get(records.task)
    seen, most = _seen(overlay, [picture for _, picture in shown]), 6 if overlay else 4
    classes = coloured(records.classes, seen)
    height, width = shown[0][1].image.shape[-2:]
    lines = 2 if overlay and width > TWO_LINES * height else 1
    across = lines * (PANEL if overlay else WIDE_PANEL)
    tall = across * min(height / width, TWO_LINES) + 0.5
    size = (most // lines * across, len(shown) * lines * tall + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(textwrap.shorten(records.model, 90, placeholder="…"), fontsize=11)
    panels = figure.subplots(len(shown) * lines, most // lines, squeeze=False)
    for row, (name, picture) in zip(panels.reshape(-1, most), shown, strict=True):
        if overlay is None:
            _draw_words(list(row), name, picture, classes, records)
        else:
            _draw_overlaid(list(row), name, picture, overlay, classes, records)
    _add_legend(figure, overlay, classes, seen)
    return save(figure, folder / "examples.png")


def _draw_overlaid(
    panels: Sequence[Axes],
    name: str,
    picture: Picture,
    overlay: Overlay,
    classes: Classes,
    records: GradedRecords,
) -> None:
    image, labels, before, attacked, after, change = panels
    show_image(image, picture.image)
    set_title(image, "image")
    overlay.show(labels, picture.image, picture.truth, classes)
    set_title(labels, "labels")
    show_image(attacked, picture.adversarial)
    set_title(attacked, _under(records, name, picture))
    truth = moved = torch.from_numpy(picture.truth.copy())[None]
    if records.labels_move and picture.flow.size:
        moved = task_of(records).moved(truth, torch.from_numpy(picture.flow.copy())[None])

    def predicted(panel: Axes, title: str, on: _Image, what: NDArray[Any], y: Tensor) -> None:
        overlay.show(panel, on, what, classes)
        found = torch.from_numpy(what.copy())[None]
        score = float(overlay.scored(found, y, len(records.classes)).nan_to_num(0.0))
        set_title(panel, f"{title}\n{overlay.score} {100 * score:.0f}%")

    predicted(before, "prediction", picture.image, picture.clean, truth)
    predicted(after, "prediction under attack", picture.adversarial, picture.attacked, moved)
    _show_change(change, picture)


def _draw_words(
    panels: Sequence[Axes], name: str, picture: Picture, classes: Classes, records: GradedRecords
) -> None:
    image, attacked, change, bars = panels
    show_image(image, picture.image)
    set_title(image, "image")
    show_image(attacked, picture.adversarial)
    set_title(attacked, _under(records, name, picture))
    _show_change(change, picture)
    show_bars(bars, picture.truth, picture.clean, picture.attacked, classes)
    bars.set_box_aspect(picture.image.shape[-2] / picture.image.shape[-1])
    set_title(bars, "probability, 0 to 100%")


def _show_change(panel: Axes, picture: Picture) -> None:
    if picture.flow.size:
        show_flow(panel, picture.image, picture.flow)
    else:
        show_difference(panel, picture.adversarial - picture.image)


def _under(records: GradedRecords, name: str, picture: Picture) -> str:
    """The attack and its budget."""
    attack = next(attack for attack in records.attacks if attack.name == name)
    return f"attacked by {name}\n{attack.labels[attack.budgets.index(picture.budget)]}"


def _seen(overlay: Overlay | None, pictures: Sequence[Picture]) -> Counter[int]:
    """How often each class, or void, is seen in labels and predictions."""
    seen = Counter[int]()
    if overlay is None:
        return seen
    for picture in pictures:
        for labels in (picture.truth, picture.clean, picture.attacked):
            kinds, counts = np.unique(overlay.kinds(labels).astype(int), return_counts=True)
            seen.update(dict(zip(kinds.tolist(), counts.tolist(), strict=True)))
    return seen


def _add_legend(
    figure: Figure, overlay: Overlay | None, classes: Classes, seen: Counter[int]
) -> None:
    """Put below what the colours mean, of what is seen, and make the figure taller by it."""
    if overlay is None:
        handles = [Patch(color=BEFORE, label="clean"), Patch(color=AFTER, label="under attack")]
        caption = f"in bold: the classes that hold\n{CHANGE}"
    else:
        named = [k for k in sorted(seen) if k in classes.colours][:MOST_NAMED]
        handles = [Patch(color=classes.colour(k), label=classes.name(k)) for k in named]
        if any(0 <= k < len(classes.names) and classes.covers(k) for k in seen if k not in named):
            handles.append(Patch(facecolor=OTHERS, edgecolor="0.7", label="other classes"))
        if VOID in seen and overlay.show is _show_mask:
            handles.append(Patch(color=NOT_COUNTED, label="not counted"))
        if any(k < -1 for k in seen):
            handles.append(Patch(color=NOT_COUNTED, label="ignored"))
        caption = overlay.caption
    width, height = figure.get_size_inches()
    for columns in range(max(1, min(len(handles), 12)), 0, -1):
        legend = figure.legend(
            handles=handles,
            title=caption,
            loc="outside lower center",
            ncols=columns,
            fontsize=8,
            title_fontsize=8,
            frameon=False,
            handlelength=1.2,
            columnspacing=1.2,
        )
        legend.get_title().set_multialignment("center")
        extent = legend.get_window_extent()
        if extent.width < 0.98 * figure.bbox.width or columns == 1:
            break
        legend.remove()
    figure.set_size_inches(width, height + extent.height / figure.dpi)
