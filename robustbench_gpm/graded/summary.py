"""The numbers derived from graded records: the metric at every budget, its interval, the cost."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from ..summary import Proportion, cost_of, write_numbers
from ..tasks import TASKS
from ..tasks.base import GradedTask
from .records import GradedAttack, GradedRecords, Level

RESAMPLES = 200  # of the samples, with replacement, for an interval


def curve(records: GradedRecords, attack: GradedAttack) -> list[Proportion]:
    """The metric without an attack and at each budget, in [0,1], with 95% intervals."""
    return [point(records, level) for level in (records.clean, *attack.levels)]


@lru_cache(maxsize=256)  # the summary, the figure and the command line tell the same points
def point(records: GradedRecords, level: Level) -> Proportion:
    """The metric of one level, and its bootstrap interval (Efron 1979): 2.5 to 97.5% over samples.

    Without an interval where the task's metric takes too long to be resampled.
    """
    task, classes = task_of(records), len(records.classes)
    value = task.metric_of(level.evidence, classes)
    if not task.resampled:
        return Proportion(value, value, value)
    stream, n = np.random.default_rng(0), len(level.evidence)
    drawn = [
        task.metric_of([level.evidence[i] for i in stream.integers(n, size=n)], classes)
        for _ in range(RESAMPLES)
    ]
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Proportion(value, min(float(low), value), max(float(high), value))


def task_of(records: GradedRecords) -> GradedTask:
    """The task the records are of. Raises UserError for one there is none of."""
    task = TASKS[records.task]()
    assert isinstance(task, GradedTask)
    return task


def summarise(records: GradedRecords) -> dict[str, object]:
    """What `summary.json` says."""
    clean = point(records, records.clean)
    by_attack = {attack.name: cost_of((attack,)) for attack in records.attacks}
    return {
        "model": records.model,
        "task": records.task,
        "metric": records.metric,
        "n": len(records.index),
        "labels_move": records.labels_move,
        "clean": clean.value,
        "clean_ci95": [clean.low, clean.high],
        "clean_details": _details(records, records.clean),
        "curves": {attack.name: _curve(records, attack) for attack in records.attacks},
        "cost": {**cost_of(records.attacks), "by_attack": by_attack},
        "flags": list(records.flags),
        "provenance": records.provenance,
    }


def _curve(records: GradedRecords, attack: GradedAttack) -> dict[str, object]:
    points = curve(records, attack)[1:]
    return {
        "threat": attack.threat,
        "unit": attack.unit,
        "budgets": list(attack.budgets),
        "labels": list(attack.labels),
        "robust": [p.value for p in points],
        "ci95": [[p.low, p.high] for p in points],
        "details": [_details(records, level) for level in attack.levels],
        "hyperparameters": attack.hyperparameters,
    }


def _details(records: GradedRecords, level: Level) -> dict[str, float]:
    """Further metrics, and the mean of the samples' own scores."""
    further = task_of(records).further_metrics(level.evidence, len(records.classes))
    return {**further, "mean_score": float(level.score.mean())}


def write_summary(records: GradedRecords, folder: Path) -> Path:
    """Write `folder/summary.json` and return its path."""
    return write_numbers(summarise(records), folder)
