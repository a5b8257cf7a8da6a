"""The figure of benchmarks/training_cost.py: robust accuracy against what training cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator
from numpy.typing import NDArray

from robustbench_gpm.report.curves import COLOURS, MARKERS

Places = NDArray[np.float64]
SIZE = (11.0, 6.2)  # inches
TICKS = (1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24)
LABEL = 7.5  # points
GAP = 1.4  # points between a label and whatever else there is
FAMILIES = (
    "plain",
    "gradient penalty",
    "moved weights",
    "attacked intensity",
    "attacked location",
    "combination",
)


class Spread(NamedTuple):
    """A mean (of costs, the median), and the least and largest of what it is of."""

    middle: float
    least: float
    largest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(sum(values) / len(values), min(values), max(values))


@dataclass(frozen=True)
class Row:
    """One objective: its cost in multiples of plain training, and accuracies in per cent."""

    name: str
    family: str
    cost: Spread
    clean: Spread
    intensity: Spread
    location: Spread


class Panel(NamedTuple):
    """What a panel shows of the rows: the field of Row, and its title."""

    shown: str
    title: str


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Places of the (cost, accuracy) that none beats: as cheap and as accurate, and better in one.

    By rising cost; of equal points the first.
    """
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1], i))
    kept: list[int] = []
    for place in order:
        if not kept or points[place][1] > points[kept[-1]][1]:
            kept.append(place)
    return kept


def figure_of(rows: Sequence[Row], panels: Sequence[Panel]) -> Figure:
    """The panels side by side on one scale of cost, a labelled point and its bar for each row."""
    figure = Figure(figsize=SIZE, dpi=200)  # as it is saved: the width of letters depends on it
    figure.subplots_adjust(left=0.055, right=0.99, top=0.93, bottom=0.145, wspace=0.13)
    for axes, panel in zip(figure.subplots(1, len(panels)), panels, strict=True):
        _draw_panel(axes, rows, panel)
    present = [family for family in FAMILIES if any(row.family == family for row in rows)]
    handles = [Line2D([], [], **_style(family), linestyle="", label=family) for family in present]
    handles.append(Line2D([], [], color="0.75", linewidth=1.4, label="Pareto front"))
    figure.legend(
        handles=handles, loc="lower center", ncols=len(handles), fontsize=9, frameon=False
    )
    return figure


def _style(family: str) -> dict[str, Any]:
    place = FAMILIES.index(family)
    colours = [COLOURS[6], *COLOURS[:5]]  # the plain one black
    return {
        "color": colours[place],
        "marker": MARKERS[place],
        "markersize": 11 if MARKERS[place] == "*" else 7,
        "markeredgecolor": "white",
    }


def _draw_panel(axes: Axes, rows: Sequence[Row], panel: Panel) -> None:
    shown: list[Spread] = [getattr(row, panel.shown) for row in rows]
    costs = [row.cost.middle for row in rows]
    _scale(axes, costs, shown)
    best = front(list(zip(costs, (accuracy.middle for accuracy in shown), strict=True)))
    corners = [(costs[i], shown[i].middle) for i in best]
    corners.append((axes.get_xlim()[1], corners[-1][1]))
    x, y = zip(*corners, strict=True)
    axes.plot(x, y, drawstyle="steps-post", color="0.75", linewidth=1.4, zorder=1)
    for row, accuracy in zip(rows, shown, strict=True):
        style = _style(row.family)
        axes.vlines(
            row.cost.middle, accuracy.least, accuracy.largest, color=style["color"], linewidth=1.1
        )
        axes.plot(row.cost.middle, accuracy.middle, **style, linestyle="", zorder=3)
    axes.set_title(panel.title, fontsize=11)
    axes.set_xlabel("training cost, multiples of plain SGD")
    axes.set_ylabel("robust accuracy (%)", labelpad=1)
    axes.grid(color="0.92", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    _place_labels(axes, rows, shown, best, corners)


def _scale(axes: Axes, costs: Sequence[float], shown: Sequence[Spread]) -> None:
    """Cost on a logarithmic scale; room for labels on all sides."""
    axes.set_xscale("log")
    axes.set_xlim(min(costs) / 1.16, max(costs) * 1.3)
    ticks = [tick for tick in TICKS if axes.get_xlim()[0] < tick < axes.get_xlim()[1]]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FixedFormatter([f"{tick:g}" for tick in ticks]))
    axes.xaxis.set_minor_locator(NullLocator())
    low = min(accuracy.least for accuracy in shown)
    high = max(accuracy.largest for accuracy in shown)
    room = 0.05 * max(high - low, 1)
    axes.set_ylim(max(low - room, -1), min(high + room, 101))


def _place_labels(
    axes: Axes,
    rows: Sequence[Row],
    shown: Sequence[Spread],
    best: Sequence[int],
    corners: Sequence[tuple[float, float]],
) -> None:
    """Each name where it lies on nothing, as near to its point as can be; the crowded ones first.

    A name that had to go far is tied to its point by a thin line. Who is on the front, whose
    `corners` these are, is bold.
    """
    dot = axes.figure.dpi / 72  # pixels
    costs = [row.cost.middle for row in rows]
    to_pixels, to_data = axes.transData.transform, axes.transData.inverted().transform
    points = to_pixels([*zip(costs, (a.middle for a in shown), strict=True)])
    lows = to_pixels([*zip(costs, (a.least for a in shown), strict=True)])
    highs = to_pixels([*zip(costs, (a.largest for a in shown), strict=True)])
    taken = [*_boxes(points, (9 * dot, 9 * dot)), *np.hstack((lows - dot, highs + dot))]
    for (left, level), (right, higher) in pairwise(to_pixels(corners)):  # each step of the front
        steps = ((left, level, right, level), (right, level, right, higher))
        taken += [np.array(step) + dot * np.array((-1, -1, 1, 1)) for step in steps]
    crowd = (np.linalg.norm(points[:, None] - points[None], axis=2) < 60 * dot).sum(1)
    for place in sorted(range(len(rows)), key=lambda i: (-crowd[i], i)):
        row, point = rows[place], points[place]
        text = axes.text(
            costs[place],
            shown[place].middle,
            row.name,
            fontsize=LABEL,
            color=_style(row.family)["color"],
            fontweight="bold" if place in best else "normal",
            ha="center",
            va="center",
            zorder=4,
        )
        size = text.get_window_extent()
        spots = _spots(point, (size.width, size.height), dot)
        spot = spots[
            _covered(spots, np.array(taken), np.array(axes.bbox.extents), GAP * dot).argmin()
        ]
        taken.append(spot)
        right, up = to_data((spot[:2] + spot[2:]) / 2)
        text.set_position((right, up))
        near = point.clip(spot[:2], spot[2:])
        if np.linalg.norm(near - point) > 9 * dot:
            axes.plot(*to_data([point, near]).T, color="0.6", linewidth=0.5, zorder=1.5)


def _spots(point: Places, size: tuple[float, float], dot: float) -> Places:
    """Boxes (spots,4) of a label around its point: right, left, above, below; then further away."""
    turns = np.radians((0, 180, 90, 270, 45, 315, 135, 225, 22, 338, 158, 202, 68, 292, 112, 248))
    towards = np.stack((np.cos(turns), np.sin(turns)), axis=1)
    away = dot * np.arange(7, 120, 4)[:, None, None]
    centres = point + towards * (away + np.array(size) / 2)
    return _boxes(centres.reshape(-1, 2), size)


def _boxes(centres: Places, size: tuple[float, float]) -> Places:
    """left, bottom, right and top (N,4) of boxes of one size around centres (N,2)."""
    half = np.array(size) / 2
    return np.hstack((centres - half, centres + half))


def _covered(spots: Places, taken: Places, within: Places, gap: float) -> Places:
    """How much of each spot (N,4), with a gap around it, is taken, and far more for one outside."""
    first = np.maximum(spots[:, None, :2] - gap, taken[None, :, :2])
    last = np.minimum(spots[:, None, 2:] + gap, taken[None, :, 2:])
    overlap = (last - first).clip(0).prod(2).sum(1)
    outside = (spots[:, :2] < within[:2]).any(1) | (spots[:, 2:] > within[2:]).any(1)
    covered: Places = overlap + 1e9 * outside
    return covered
