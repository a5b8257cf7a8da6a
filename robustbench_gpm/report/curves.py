"""Accuracy against budget: a panel a threat, a line for each model under each attack."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from ..records import AttackColumns, Records
from ..summary import Proportion, proportion, robust_accuracy
from .layout import Attacked, arrange, kind_of
from .saving import save

# Okabe and Ito (2008), Color Universal Design; the yellow last, as it is faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
LINES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (9, 2)))
MARKERS = "os^Dv*X"
PANEL = (4.0, 3.3)  # inches
MOST_TICKS = 9
LETTERS = 13  # an inch, of size 9
TICK_LETTER = 0.09  # inches, of size 10


class Drawable(Protocol):
    """What a figure needs to know of records."""

    @property
    def model(self) -> str: ...
    @property
    def attacks(self) -> Sequence[Attacked]: ...
    @property
    def flags(self) -> Sequence[dict[str, object]]: ...


R = TypeVar("R", bound=Drawable)
Points = Callable[[R, Any], Sequence[Proportion]]  # without an attack, then at each budget


class Line(NamedTuple):
    """One model under one attack, and how it is drawn."""

    points: Sequence[Proportion]
    attack: Attacked
    label: str
    style: dict[str, Any]


def accuracies(records: Records, attack: AttackColumns) -> list[Proportion]:
    """Clean accuracy, then the robust one at each budget."""
    return [proportion(records.right), *robust_accuracy(records, attack)]


def draw_curves(models: Sequence[Records], folder: Path, name: str = "curve") -> tuple[Path, Path]:
    """Draw robust accuracy (%) against budget into `folder/name.png` and `.pdf`, and return both.

    See `draw_metric`.
    """
    return draw_metric(models, accuracies, "accuracy", folder, name)


def draw_metric(
    models: Sequence[R], points: Points[R], metric: str, folder: Path, name: str = "curve"
) -> tuple[Path, Path]:
    """Draw a metric (%) against budget into `folder/name.png` and `.pdf`, and return both.

    There is a panel a threat, those of intensity beside those of location, on one scale. Colour
    tells the model, or the attack where there is one model; line and marker tell the attack. A line
    starts at budget 0 with what was measured without an attack, and its band is the 95% interval.
    A box on top names the models whose flags cast doubt on them. The same records give the same
    bytes. Raises UserError where records hold no sample, ValueError where there is no attack.
    """
    lines = _lines(models, points)
    if not lines:
        raise ValueError("these records hold no attack, so there is no curve to draw")
    places = arrange(line.attack for line in lines)
    rows, columns = (1 + max(place) for place in zip(*places.values(), strict=True))
    width = PANEL[0] * columns if columns < 3 else 10.0
    layout = ConstrainedLayoutEngine(wspace=0.05, hspace=0.04)
    figure = Figure(figsize=(max(width, 5.5), PANEL[1] * rows), layout=layout)
    grid = figure.add_gridspec(rows, columns)
    for threat, (row, column) in places.items():
        panel = figure.add_subplot(
            grid[row, column], sharey=figure.axes[0] if figure.axes else None
        )
        _draw_panel(panel, threat, [line for line in lines if line.attack.threat == threat])
        if column == min(c for r, c in places.values() if r == row):
            panel.set_ylabel(f"{metric} (%)")
        else:
            panel.tick_params(labelleft=False)
    _add_legend(figure, lines)
    _add_doubts(figure, models)
    return save(figure, folder / f"{name}.png"), save(figure, folder / f"{name}.pdf")


def _lines(models: Sequence[R], points: Points[R]) -> list[Line]:
    """One line a model and attack, attack by attack, so that a legend's column is an attack."""
    names = _names(models)
    colours: Sequence[Any] = COLOURS
    if len(models) > len(COLOURS):
        colours = list(mpl.colormaps["viridis"](np.linspace(0, 0.95, len(models))))
    attacks = list(dict.fromkeys(a.name for records in models for a in records.attacks))
    lines = []
    for number, attack_name in enumerate(attacks):
        dashes, marker = LINES[number % len(LINES)], MARKERS[number % len(MARKERS)]
        if len(models) == 1:  # nothing to tell apart but the attacks
            colours = [COLOURS[number % len(COLOURS)]]
        for records, name, colour in zip(models, names, colours, strict=False):
            style = {"color": colour, "linestyle": dashes, "marker": marker}
            label = textwrap.fill(f"{name}, {attack_name}", 60)
            lines += [
                Line(points(records, attack), attack, label, style)
                for attack in records.attacks
                if attack.name == attack_name
            ]
    return lines


def _names(models: Sequence[Drawable]) -> list[str]:
    """The models' names; those that share one are numbered."""
    shared, so_far = Counter(records.model for records in models), Counter[str]()
    names = []
    for records in models:
        so_far[records.model] += 1
        number = f" ({so_far[records.model]})" if shared[records.model] > 1 else ""
        names.append(records.model + number)
    return names


def _draw_panel(panel: Axes, threat: str, lines: list[Line]) -> None:
    unit = lines[0].attack.unit
    factor = 255 if threat == "linf" else 1
    for line in lines:
        middle, low, high = 100 * np.array(line.points).T
        x = factor * np.array((0.0, *line.attack.budgets))
        colour = line.style["color"]
        panel.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
        panel.plot(x, middle, **line.style, markersize=4.5, linewidth=1.6, clip_on=False, zorder=3)
    _scale(panel, sorted({float(f"{factor * b:.6g}") for a in lines for b in a.attack.budgets}))
    named = {"linf": "linf (/255)", "flow": "flow (pixels)"}.get(threat)
    panel.set_xlabel(f"budget, {named or f'{threat} ({unit})'}")
    kind = kind_of(lines[0].attack)
    panel.set_title(f"{kind} ({threat})" if kind else threat, fontsize=11)
    panel.set_ylim(0, 100)
    panel.set_yticks(range(0, 101, 20))
    panel.grid(color="0.9", linewidth=0.7)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def _scale(panel: Axes, budgets: list[float]) -> None:
    """Mark 0 and the budgets, on whichever scale keeps the closest two further apart.

    Even steps stay even on the linear one; doublings are even on the logarithmic one, which is
    linear from 0 to the smallest budget.
    """
    ticks = np.array((0.0, *budgets))
    logarithmic = np.concatenate(([0.0], 1 + np.log2(ticks[1:] / ticks[1])))
    if _closest(logarithmic) > _closest(ticks) * 1.01:
        # The linear part is drawn linscale / (1 - 1/base) = 1 doubling long.
        panel.set_xscale("symlog", base=2, linthresh=budgets[0], linscale=0.5)
    panel.set_xlim(0, budgets[-1])
    panel.xaxis.set_major_locator(FixedLocator(ticks.tolist()))
    panel.xaxis.set_major_formatter(FixedFormatter(_tick_names(panel, ticks)))
    panel.xaxis.set_minor_locator(NullLocator())


def _tick_names(panel: Axes, ticks: np.ndarray) -> list[str]:
    """A name for every few ticks, none of which comes near the next."""
    step = -(-len(ticks) // MOST_TICKS)
    names = [f"{tick:.4g}" if i % step == 0 else "" for i, tick in enumerate(ticks)]
    wide = [TICK_LETTER * (len(name) - name.count(".") / 2) for name in names]
    across = panel.transData + panel.transAxes.inverted()
    columns = panel.get_subplotspec().get_gridspec().ncols  # type: ignore[union-attr]
    inches = (
        0.86 * panel.figure.bbox.width / panel.figure.dpi / columns
    )  # about what the layout leaves a panel
    places = inches * across.transform(np.stack((ticks, 0 * ticks), 1))[:, 0]
    start, end = wide[0] / 2, np.inf  # the room between 0 and the last name kept
    for i in reversed([i for i, name in enumerate(names) if i and name]):
        if start < places[i] - wide[i] / 2 and places[i] + wide[i] / 2 < end:
            end = places[i] - wide[i] / 2 - TICK_LETTER / 2
        else:
            names[i] = ""
    return names


def _closest(positions: np.ndarray) -> float:
    """The smallest gap between neighbours as a share of the whole span."""
    return float(np.diff(positions).min() / positions[-1])


def _add_legend(figure: Figure, lines: list[Line]) -> None:
    """Put the legend below in as many columns as fit, and make the figure taller by it."""
    handles = [Line2D([], [], **line.style, label=line.label, markersize=4.5) for line in lines]
    attacks = len({line.attack.name for line in lines})
    most = attacks * -(-len(lines) // (5 * attacks))  # about five to a column
    width, height = figure.get_size_inches()
    for columns in range(most, 0, -1):
        if columns < attacks and attacks % columns:
            continue  # it would part the models of an attack
        legend: Legend = figure.legend(
            handles=handles,
            loc="outside lower center",
            ncols=columns,
            fontsize=9,
            frameon=False,
            handlelength=3.2,
        )
        size = legend.get_window_extent()
        if size.width < 0.98 * figure.bbox.width or columns == 1:
            break
        legend.remove()
    figure.set_size_inches(width, height + size.height / figure.dpi)


def _add_doubts(figure: Figure, models: Sequence[Drawable]) -> None:
    """Name in a box on top whose results are in doubt, and why; make the figure taller by it."""
    width, height = figure.get_size_inches()
    told = [
        textwrap.fill(f"{name}: {doubts}", int(LETTERS * width), subsequent_indent="    ")
        for records, name in zip(models, _names(models), strict=True)
        if (doubts := _doubts(records))
    ]
    if not told:
        return
    note = figure.legend(  # a legend of nothing but its title, which the layout makes room for
        handles=[],
        title="\n".join(["Results in doubt (summary.json says why):", *told]),
        title_fontsize=9,
        loc="outside upper center",
        edgecolor="black",
        framealpha=1,
        labelspacing=0,
    )
    note.get_title().set_multialignment("left")
    extent = note.get_window_extent()
    figure.set_size_inches(width, height + extent.height / figure.dpi)


def _doubts(records: Drawable) -> str:
    """The records' flags by name, and the norm and budget they went up at."""
    places: dict[str, list[str]] = {}
    for flag in records.flags:
        if flag.get("kind") != "note":
            place = str(flag.get("at", "")).replace(" ", "\u00a0")  # on one line
            names = places.setdefault(place, [])
            names.append(str(flag["name"]).replace("_", " "))
    told = [", ".join(names) + (f" ({at})" if at else "") for at, names in places.items()]
    return "; ".join(told)
