"""Adversarial examples: the clean image, the adversarial one, and what was changed."""

from __future__ import annotations

import math
import textwrap
from itertools import zip_longest
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..records import AttackColumns, Example, Records
from .saving import save

MOST_ROWS = 8
ARROWS_ACROSS = 12
WIDTH = 6.6  # inches
RIGHT, WRONG = "black", "#D55E00"
LEGEND = (
    "difference: red is brighter, blue darker, in the channel that changed most\n"
    "flow: arrows go where a pixel is read from"
)
_Image = NDArray[np.float32]


def draw_examples(records: Records, folder: Path, most: int = MOST_ROWS) -> Path | None:
    """Draw some examples into `folder/examples.png`; None where the records hold none.

    Of each attack up to `most` are drawn, eight in all, the most telling first: those that fell at
    the budget which about half of the samples withstand.

    A row is the clean image, the adversarial one, and what changed: for an attack on intensities
    the signed difference (of the channel that changed most), for a deformation its flow as arrows
    over the clean image, each towards where the pixel is read from. The scale is stated. With
    several attacks each has its share of the rows.
    """
    examples = _chosen(records, most)
    if not examples:
        return None
    figure = Figure(figsize=(WIDTH, 2.3 * len(examples) + 0.6), layout="constrained")
    figure.suptitle(textwrap.shorten(records.model, 70, placeholder="…"), fontsize=11)
    figure.supxlabel(LEGEND, fontsize=8)
    rows = figure.subplots(len(examples), 3, squeeze=False)
    for (clean, adversarial, change), example in zip(rows, examples, strict=True):
        _draw_row(clean, adversarial, change, example, records)
    return save(figure, folder / "examples.png")


def _chosen(records: Records, most: int) -> list[Example]:
    """Up to MOST_ROWS examples, the attacks taking turns, then attack by attack."""
    by_attack: dict[str, list[Example]] = {}
    for example in records.examples:
        by_attack.setdefault(example.attack, []).append(example)
    for name, shown in by_attack.items():
        by_attack[name] = _telling(records.attack(name), shown)[:most]
    turns = [e for turn in zip_longest(*by_attack.values()) for e in turn if e is not None]
    order = list(by_attack)
    return sorted(turns[:MOST_ROWS], key=lambda example: order.index(example.attack))


def _telling(attack: AttackColumns, examples: list[Example]) -> list[Example]:
    """The examples, those of the budget that about half of the samples withstand first."""
    half = (attack.smallest_budget != 0).sum() / 2

    def imbalance(example: Example) -> float:
        fooled = (attack.smallest_budget <= example.budget) & (attack.smallest_budget > 0)
        return abs(float(fooled.sum() - half))

    return sorted(examples, key=imbalance)


def _draw_row(
    clean: Axes, adversarial: Axes, change: Axes, example: Example, records: Records
) -> None:
    def said(panel: Axes, heading: str, prediction: int, confidence: float) -> None:
        name = _class_name(records, prediction)
        colour = RIGHT if prediction == example.label else WRONG
        _title(panel, f"{heading}\npredicted {name}, {100 * confidence:.0f}%", colour)

    attack = records.attack(example.attack)
    budget = attack.labels[attack.budgets.index(example.budget)]
    truth = f"clean: {_class_name(records, example.label)}"
    _show(clean, example.clean)
    said(clean, truth, example.clean_prediction, example.clean_confidence)
    _show(adversarial, example.adversarial)
    said(adversarial, f"{attack.name}, {budget}", example.prediction, example.confidence)
    if example.flow is None:
        _show_difference(change, example.adversarial - example.clean)
    else:
        _show_flow(change, example.clean, example.flow)


def _class_name(records: Records, index: int) -> str:
    """The class's name, cut to fit above an image; its number where it has no name."""
    name = records.classes[index] if index < len(records.classes) else str(index)
    return name if len(name) <= 22 else name[:21] + "…"


def _title(panel: Axes, text: str, colour: str = RIGHT) -> None:
    """A title above an image, in smaller print where it would reach over the next image."""
    title = panel.set_title(text, fontsize=8.5, color=colour)
    room = 0.95 / 3 * WIDTH * panel.figure.dpi
    title.set_fontsize(8.5 * min(1.0, room / title.get_window_extent().width))


def _show(panel: Axes, image: _Image) -> None:
    """An image (C,H,W) in [0,1] of one channel (grey) or three (RGB)."""
    pixels = np.clip(image, 0, 1).transpose(1, 2, 0)
    panel.imshow(pixels if len(image) == 3 else pixels[..., 0], cmap="gray", vmin=0, vmax=1)
    _frame(panel)


def _frame(panel: Axes) -> None:
    panel.set_xticks([])
    panel.set_yticks([])
    for spine in panel.spines.values():
        spine.set(color="0.7", linewidth=0.6)


def _show_difference(panel: Axes, difference: _Image) -> None:
    """A signed difference (C,H,W): red is brighter, blue darker, full colour at the largest."""
    most = np.abs(difference).argmax(0)[None]
    signed = np.take_along_axis(difference, most, 0)[0]
    largest = float(np.abs(signed).max())
    limit = largest or 1.0
    panel.imshow(signed, cmap="coolwarm", vmin=-limit, vmax=limit)
    scale = f"full colour: ±{255 * largest:.3g}/255" if largest else "nothing changed"
    _title(panel, f"difference, {1 / limit:.3g}x enlarged\n{scale}")
    _frame(panel)


def _show_flow(panel: Axes, image: _Image, flow: _Image) -> None:
    """A flow (2,H,W) in pixels as arrows over the image in faded grey."""
    _show(panel, 0.45 + 0.5 * image.mean(0, keepdims=True))
    height, width = flow.shape[1:]
    step = -(-max(height, width) // ARROWS_ACROSS)
    rows = np.arange(step // 2, height, step)
    columns = np.arange(step // 2, width, step)
    right, down = flow[:, rows[:, None], columns]
    largest = float(np.abs(flow).max())
    longest = float(np.hypot(right, down).max())
    times = _round_down(1.5 * step / longest) if longest else 1.0
    # In data coordinates, where down is positive as in the flow itself.
    panel.quiver(
        *np.meshgrid(columns, rows),
        right,
        down,
        angles="xy",
        scale_units="xy",
        scale=1 / times,
        color=WRONG,
        width=0.008,
        headwidth=3.5,
        headlength=4,
    )
    scale = f"largest move: {largest:.3g} px" if largest else "nothing moved"
    _title(panel, f"flow, arrows {times:g}x enlarged\n{scale}")


def _round_down(value: float) -> float:
    """The value cut to one digit."""
    power = 10.0 ** math.floor(math.log10(value))
    return math.floor(value / power) * power
