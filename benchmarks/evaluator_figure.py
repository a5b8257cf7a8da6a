"""The figure of benchmarks/evaluator.py."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, cycle
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter
from measured import Entry, case_of, robust, standing

from robustbench_gpm.report.curves import COLOURS, MARKERS


def figure_of(parts: Mapping[str, Sequence[Entry]]) -> Figure:
    """Eight inches wide: verdicts against time on the left, curves on the right."""
    figure = Figure(figsize=(8, 4.6), layout=ConstrainedLayoutEngine(wspace=0.06))
    left, right = figure.subplots(1, 2)
    verdicts, curves = parts.get("verdict", ()), parts.get("curve", ())
    _draw_verdicts(left, verdicts, _markers(case_of(entry) for entry in verdicts))
    _draw_curves(right, curves, _markers(entry["title"] for entry in curves))
    for panel in (left, right):
        panel.set_ylim(bottom=-2)
        panel.set_ylabel("robust accuracy (%)")
        panel.grid(color="0.9", linewidth=0.7)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    return figure


def _markers(names: Iterable[str]) -> dict[str, str]:
    return dict(zip(dict.fromkeys(names), cycle(MARKERS), strict=False))


def _colour(name: str, entries: Sequence[Entry]) -> str:
    """The reference's is vermilion; those here begin with blue."""
    own = list(dict.fromkeys(n for e in entries for n in e["contenders"] if n != e["reference"]))
    others = [colour for colour in COLOURS if colour != COLOURS[1]]
    return others[own.index(name)] if name in own else COLOURS[1]


def _draw_verdicts(panel: Axes, entries: Sequence[Entry], markers: Mapping[str, str]) -> None:
    """Robust accuracy against seconds, a point after each part that has a time of its own."""
    handles: dict[str, Line2D] = {}
    for entry in entries:
        marker = markers[case_of(entry)]
        for name, result in entry["contenders"].items():
            style: dict[str, Any] = {"color": _colour(name, entries), "linewidth": 1.6}
            seconds, accuracy = _steps(entry, result, name)
            panel.plot(seconds, accuracy, marker=marker, markersize=6, **style, clip_on=False)
            handles.setdefault(name, Line2D([], [], **style, label=name))
        handles[case_of(entry)] = Line2D(
            [], [], color="0.35", marker=marker, linestyle="", label=case_of(entry)
        )
    panel.set_xscale("log")
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.set_xlabel("seconds, a point after each part of an attack")
    panel.set_title("verdict at one linf budget", fontsize=11)
    _legend(panel, list(handles.values()))


def _steps(entry: Entry, result: Mapping[str, Any], name: str) -> tuple[list[float], list[float]]:
    """Seconds so far and robust accuracy; the end alone where parts have no time of their own."""
    stages = [stage["seconds"] for stage in result["stages"].values()]
    if len(stages) < 2 or None in stages:
        return [sum(result["seconds"])], robust(entry, name)
    return list(accumulate(stages)), standing(entry, name)


def _draw_curves(panel: Axes, entries: Sequence[Entry], markers: Mapping[str, str]) -> None:
    """The reference's curve broad and pale, and the one here thin upon it."""
    handles = []
    for entry in entries:
        for name, result in entry["contenders"].items():
            theirs = name == entry["reference"]
            style: dict[str, Any] = {
                "color": _colour(name, entries),
                "linestyle": "-",
                "marker": markers[entry["title"]],
                "markersize": 9 if theirs else 4,
                "markeredgewidth": 0,
                "linewidth": 4.5 if theirs else 1.5,
                "alpha": 0.45 if theirs else 1,
                "label": f"{entry['title']}: {name}, {sum(result['seconds']):.3g} s",
            }
            budgets = [255 * budget for budget in entry["budgets"]]
            place: dict[str, Any] = {"clip_on": False, "zorder": 2.5 if theirs else 3}
            panel.plot(budgets, robust(entry, name), **style, **place)
            handles.append(Line2D([], [], **style))
    panel.set_xlabel("budget, linf (/255)")
    panel.set_title("PGD at ten linf budgets", fontsize=11)
    panel.set_xlim(left=0)
    _legend(panel, handles)


def _legend(panel: Axes, handles: list[Line2D]) -> None:
    if handles:
        panel.legend(
            handles=handles,
            loc="upper center",
            bbox_to_anchor=(0.5, -0.16),
            fontsize=8.5,
            frameon=False,
        )
