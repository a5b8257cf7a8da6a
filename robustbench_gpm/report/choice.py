"""Which of the records' examples are drawn."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

from ..records import AttackColumns, Example, Records

MOST_ROWS = 8


def chosen(
    records: Records,
    examples: Iterable[Example],
    each: int,
    most: int = MOST_ROWS,
    *,
    whole: bool = False,
) -> list[Example]:
    """Up to `each` of an attack and `most` in all; the attacks take turns, and stand in order.

    Of an attack the most telling come first: those of the budget that about half of the samples
    withstand. Of clips the frame in the middle, unless they are asked for `whole`.
    """
    by_attack: dict[str, list[Example]] = {}
    for example in examples:
        by_attack.setdefault(example.attack, []).append(example)
    for name, shown in by_attack.items():
        by_attack[name] = _telling(records.attack(name), shown)[:each]
    turns = [e for turn in zip_longest(*by_attack.values()) for e in turn if e is not None]
    order = list(by_attack)
    shown = sorted(turns[:most], key=lambda example: order.index(example.attack))
    return shown if whole else [_middle(example, frames_of(records)) for example in shown]


def frames_of(records: Records) -> int:
    """Of how many frames the examples' images are, one after another as channels; 1 for images."""
    return int(str(records.provenance.get("frames", 1)))


def _middle(example: Example, frames: int) -> Example:
    """The frame in the middle of a clip, and the flow of that frame."""

    def middle(channels: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.split(channels, frames)[frames // 2]

    flow = example.flow
    if flow is not None and len(flow) > 2:
        flow = middle(flow)
    clean, adversarial = middle(example.clean), middle(example.adversarial)
    return replace(example, clean=clean, adversarial=adversarial, flow=flow)


def _telling(attack: AttackColumns, examples: list[Example]) -> list[Example]:
    """The examples, those of the budget that about half of the samples withstand first."""
    half = (attack.smallest_budget != 0).sum() / 2

    def imbalance(example: Example) -> float:
        fooled = (attack.smallest_budget <= example.budget) & (attack.smallest_budget > 0)
        return abs(float(fooled.sum() - half))

    return sorted(examples, key=imbalance)
