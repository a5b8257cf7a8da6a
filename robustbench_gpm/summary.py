"""The numbers derived from records: accuracies with their intervals, and what they cost."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from .core import UserError
from .files import writable_folder, write_text
from .records import SPENT, AttackColumns, Records

SUMMARY = "summary.json"


class Proportion(NamedTuple):
    """A share of the samples in [0,1], and its 95% interval."""

    value: float
    low: float
    high: float


def proportion(hits: NDArray[np.bool_]) -> Proportion:
    """The share of true values in hits (N,), with Wilson's score interval (Wilson 1927).

    Raises UserError where there are no samples.
    """
    if len(hits) == 0:
        raise UserError("the records hold no sample: evaluate at least one (--limit)")
    interval = binomtest(int(hits.sum()), len(hits)).proportion_ci(0.95, "wilson")
    return Proportion(float(hits.mean()), float(interval.low), float(interval.high))


def robust_accuracy(records: Records, attack: AttackColumns) -> list[Proportion]:
    """Robust accuracy at each of the attack's budgets: right when clean and not yet fooled."""
    return [proportion(records.right & ~fooled) for fooled in attack.fooled()]


def summarise(records: Records) -> dict[str, object]:
    """What `summary.json` says: accuracies in [0,1] with 95% intervals, and what they cost."""
    clean = proportion(records.right)
    by_attack = {attack.name: cost_of((attack,)) for attack in records.attacks}
    return {
        "model": records.model,
        "n": len(records.index),
        "clean_accuracy": clean.value,
        "clean_ci95": [clean.low, clean.high],
        "curves": {attack.name: _curve(records, attack) for attack in records.attacks},
        "cost": {**cost_of(records.attacks), "by_attack": by_attack},
        "flags": list(records.flags),
        "provenance": records.provenance,
    }


def _curve(records: Records, attack: AttackColumns) -> dict[str, object]:
    points = robust_accuracy(records, attack)
    return {
        "threat": attack.threat,
        "unit": attack.unit,
        "budgets": list(attack.budgets),
        "labels": list(attack.labels),
        "robust_accuracy": [point.value for point in points],
        "ci95": [[point.low, point.high] for point in points],
        "broken_by": dict(Counter(by for by in attack.broken_by if by is not None)),
        "hyperparameters": attack.hyperparameters,
    }


class Costly(Protocol):
    """Whatever has what each sample cost, (N,)."""

    @property
    def forwards(self) -> NDArray[np.int64]: ...
    @property
    def backwards(self) -> NDArray[np.int64]: ...
    @property
    def seconds(self) -> NDArray[np.float64]: ...


def cost_of(attacks: Sequence[Costly]) -> dict[str, object]:
    """What all samples cost under these attacks."""
    return {key: sum(getattr(attack, key).sum().item() for attack in attacks) for key in SPENT}


def write_summary(records: Records, folder: Path) -> Path:
    """Write `folder/summary.json` and return its path."""
    return write_numbers(summarise(records), folder)


def write_numbers(summary: dict[str, object], folder: Path) -> Path:
    """Write what a summary says to `folder/summary.json` and return its path."""
    text = json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False)
    path = writable_folder(folder, "--out") / SUMMARY
    write_text(path, text + "\n")
    return path
