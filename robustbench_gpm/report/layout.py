"""Where the panels of a curve stand: intensity beside location, any other threat after them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product
from typing import Protocol

INTENSITY = ("linf", "l2", "l1", "l0")
LOCATION = ("flow", "flow-l2", "tau")
THREATS = (*INTENSITY, *LOCATION)  # their order; any other comes after
MOST_COLUMNS = 3


class Attacked(Protocol):
    """What a line needs to know of an attack."""

    @property
    def name(self) -> str: ...
    @property
    def threat(self) -> str: ...
    @property
    def unit(self) -> str: ...
    @property
    def budgets(self) -> tuple[float, ...]: ...


def kind_of(attack: Attacked) -> str:
    """What the attack changes: "intensity", "location" (it moves pixels), or "" if unknown."""
    if attack.threat in INTENSITY or attack.unit == "image units":
        return "intensity"
    return "location" if attack.threat in LOCATION or attack.unit == "pixels" else ""


def arrange(attacks: Iterable[Attacked]) -> dict[str, tuple[int, int]]:
    """A place (row, column) for each threat, in three columns at most.

    Intensity has columns of its own, and so has location to their right, so that what is to be
    compared stands side by side; there are as few rows as can be. Other threats follow in the same
    row where there is room, else below.
    """
    kinds: dict[str, list[str]] = {"intensity": [], "location": [], "": []}
    for attack in attacks:
        if attack.threat not in (threats := kinds[kind_of(attack)]):
            threats.append(attack.threat)
    others = kinds.pop("")
    groups = [sorted(threats, key=_order) for threats in kinds.values() if threats]
    places, left = {}, 0
    for threats, columns in zip(groups, _columns([len(g) for g in groups]), strict=True):
        for number, threat in enumerate(threats):
            places[threat] = (number // columns, left + number % columns)
        left += columns
    below = 1 + max((row for row, _ in places.values()), default=-1)
    if below <= 1 and left + len(others) <= MOST_COLUMNS:
        return places | {threat: (0, left + n) for n, threat in enumerate(others)}
    columns = max(left, min(len(others), MOST_COLUMNS))
    return places | {t: (below + n // columns, n % columns) for n, t in enumerate(others)}


def _order(threat: str) -> int:
    return THREATS.index(threat) if threat in THREATS else len(THREATS)


def _columns(sizes: Sequence[int]) -> tuple[int, ...]:
    """How many columns each group of `sizes` panels has: few rows first, then few columns."""
    shares = product(range(1, MOST_COLUMNS + 1), repeat=len(sizes))
    fitting = [share for share in shares if sum(share) <= MOST_COLUMNS]

    def height(share: tuple[int, ...]) -> int:
        rows = (-(-size // columns) for size, columns in zip(sizes, share, strict=True))
        return max(rows, default=0)

    return min(fitting, key=lambda share: (height(share), sum(share)))
