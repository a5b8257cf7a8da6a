"""Which fooled samples are worth a picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Candidate:
    """A fooled sample: its row in the split, and what fooled the model; tensors on the CPU."""

    row: int
    budget: float
    prediction: int
    confidence: float
    adversarial: Tensor
    flow: Tensor | None


class Showcase:
    """Keeps the first few fooled samples of each budget, and picks the most telling ones."""

    def __init__(self, most: int) -> None:
        """At most `most` are kept of each budget, and picked in all."""
        self._most = most
        self._kept: dict[float, list[Candidate]] = {}

    def places(self, budget: float, fooled: Tensor) -> list[int]:
        """Which samples of a batch to keep: the first ones of `fooled` (B,), if there is room."""
        room = self._most - len(self._kept.get(budget, []))
        first: list[int] = fooled.nonzero().flatten()[: max(0, room)].tolist()
        return first

    def keep(self, candidate: Candidate) -> None:
        """Keep one for its budget."""
        self._kept.setdefault(candidate.budget, []).append(candidate)

    def pick(self, smallest: NDArray[np.float64]) -> list[Candidate]:
        """Candidates from the budget that about half of the samples that were right withstand.

        `smallest` (N,) are the budgets that fooled the samples: 0 for none needed, nan for none
        enough. Where that budget has too few candidates, the budgets next most telling follow.
        """
        half = (smallest != 0).sum() / 2

        def imbalance(budget: float) -> float:
            fooled = (smallest <= budget) & (smallest > 0)
            return abs(float(fooled.sum() - half))

        ordered = [c for budget in sorted(self._kept, key=imbalance) for c in self._kept[budget]]
        return ordered[: self._most]
