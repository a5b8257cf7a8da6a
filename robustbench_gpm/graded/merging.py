"""The records of all shards of a graded evaluation, put together again."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..records import SPENT
from ..shards import fitted, of_the_whole
from .batch import join
from .records import GradedAttack, GradedRecords, Level


def merged(parts: Sequence[GradedRecords]) -> GradedRecords:
    """One set of records from those of all shards, as one process would have left them.

    Raises UserError where a shard is missing, given twice, unfinished, or of another evaluation.
    """
    first, order = parts[0], fitted(parts)
    index = np.concatenate([records.index for records in parts])[order]
    place = {number: row for row, number in enumerate(index.tolist())}
    pictures = {
        attack.name: tuple(
            sorted(
                (picture for records in parts for picture in records.pictures[attack.name]),
                key=lambda picture: place[picture.index],
            )
        )
        for attack in first.attacks
    }
    return dataclasses.replace(
        first,
        index=index,
        clean=_joined([records.clean for records in parts], order),
        attacks=tuple(
            _attack([records.attacks[i] for records in parts], order)
            for i in range(len(first.attacks))
        ),
        provenance=of_the_whole(first),
        pictures=pictures,
    )


def _joined(levels: Sequence[Level], order: NDArray[np.int64]) -> Level:
    level = join(levels)
    return Level(level.score[order], [level.evidence[i] for i in order])


def _attack(parts: Sequence[GradedAttack], order: NDArray[np.int64]) -> GradedAttack:
    levels = zip(*(part.levels for part in parts), strict=True)
    spent: dict[str, Any] = {
        name: np.concatenate([getattr(part, name) for part in parts])[order] for name in SPENT
    }
    joined = tuple(_joined(level, order) for level in levels)
    return dataclasses.replace(parts[0], levels=joined, **spent)
