"""Which of the records' examples are drawn."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import zip_longest

from ..records import AttackColumns, Example, Records

MOST_ROWS = 8


def chosen(
    records: Records, examples: Iterable[Example], each: int, most: int = MOST_ROWS
) -> list[Example]:
    """Up to `each` of an attack and `most` in all; the attacks take turns, and stand in order.

    Of an attack the most telling come first: those of the budget that about half of the samples
    withstand.
    """
    by_attack: dict[str, list[Example]] = {}
    for example in examples:
        by_attack.setdefault(example.attack, []).append(example)
    for name, shown in by_attack.items():
        by_attack[name] = _telling(records.attack(name), shown)[:each]
    turns = [e for turn in zip_longest(*by_attack.values()) for e in turn if e is not None]
    order = list(by_attack)
    return sorted(turns[:most], key=lambda example: order.index(example.attack))


def _telling(attack: AttackColumns, examples: list[Example]) -> list[Example]:
    """The examples, those of the budget that about half of the samples withstand first."""
    half = (attack.smallest_budget != 0).sum() / 2

    def imbalance(example: Example) -> float:
        fooled = (attack.smallest_budget <= example.budget) & (attack.smallest_budget > 0)
        return abs(float(fooled.sum() - half))

    return sorted(examples, key=imbalance)
