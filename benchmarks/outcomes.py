"""What evaluate.py measured of a model, in one form for every task."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from robustbench_gpm import graded, records
from robustbench_gpm.graded.summary import curve
from robustbench_gpm.summary import Proportion, proportion, robust_accuracy
from robustbench_gpm.tasks import TASKS, GradedTask


@dataclass(frozen=True)
class Row:
    """What was left at one budget of one attack; without an attack both words are empty."""

    attack: str
    label: str
    left: Proportion


def outcomes(folder: Path, task: str) -> list[Row]:
    """Without an attack, then every attack at every budget, of the records in a folder."""
    return list(_graded(folder) if issubclass(TASKS[task], GradedTask) else _verdicts(folder))


def _verdicts(folder: Path) -> Iterator[Row]:
    measured = records.read(folder)
    yield Row("", "", proportion(measured.right))
    for attack in measured.attacks:
        for label, left in zip(attack.labels, robust_accuracy(measured, attack), strict=True):
            yield Row(attack.name, label, left)


def _graded(folder: Path) -> Iterator[Row]:
    measured = graded.read(folder)
    for place, attack in enumerate(measured.attacks):
        clean, *robust = curve(measured, attack)
        if place == 0:
            yield Row("", "", clean)
        for label, left in zip(attack.labels, robust, strict=True):
            yield Row(attack.name, label, left)


def how_measured(task: str) -> str:
    """The measure in words: what is counted, and what the brackets hold."""
    kind = TASKS[task]
    if not issubclass(kind, GradedTask):
        return (
            "Accuracy in per cent with Wilson's 95% interval. A sample counts as robust at a "
            "budget only if no smaller one fooled it."
        )
    interval = " with a bootstrap 95% interval over samples" if kind.resampled else ""
    return (
        f"{kind.metric} in per cent{interval}. At a budget each sample counts with the worst "
        "prediction, by its own score, that any perturbation inside that budget has brought about."
    )
