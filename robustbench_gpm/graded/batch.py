"""What an attack made of one batch of graded samples, in memory and as arrays on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..tasks.base import Evidence
from .examples import ARRAYS, Picture
from .records import Level

__all__ = ["Outcome", "Picture", "join", "pack", "unpack"]


@dataclass(frozen=True, eq=False)
class Outcome:
    """A level a budget, what each of the batch's samples cost, and a few pictures."""

    levels: list[Level]
    forwards: NDArray[np.int64]
    backwards: NDArray[np.int64]
    seconds: NDArray[np.float64]
    pictures: list[Picture]


def join(levels: Sequence[Level]) -> Level:
    """The samples of several batches at one budget."""
    evidence: list[Evidence] = [one for level in levels for one in level.evidence]
    return Level(np.concatenate([level.score for level in levels]), evidence)


def pack(outcome: Outcome) -> dict[str, Any]:
    """As arrays by name."""
    packed: dict[str, Any] = {
        "score": np.stack([level.score for level in outcome.levels]),
        **{name: getattr(outcome, name) for name in ("forwards", "backwards", "seconds")},
    }
    for place, level in enumerate(outcome.levels):
        for sample, evidence in enumerate(level.evidence):
            packed[f"evidence{place}_{sample}"] = evidence
    packed["pictures"] = np.array([(p.index, p.budget) for p in outcome.pictures]).reshape(-1, 2)
    for number, picture in enumerate(outcome.pictures):
        packed |= {f"{name}{number}": getattr(picture, name) for name in ARRAYS}
    return packed


def unpack(stored: Mapping[str, Any]) -> Outcome:
    """What `pack` packed."""
    score = stored["score"]
    levels = [
        Level(row, [stored[f"evidence{place}_{sample}"] for sample in range(len(row))])
        for place, row in enumerate(score)
    ]
    pictures = [
        Picture(int(index), budget, **{name: stored[f"{name}{number}"] for name in ARRAYS})
        for number, (index, budget) in enumerate(stored["pictures"].tolist())
    ]
    return Outcome(levels, stored["forwards"], stored["backwards"], stored["seconds"], pictures)
