"""Which fooled samples are worth a picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .records import AttackColumns


@dataclass(frozen=True)
class Candidate:
    """A fooled sample: its row in the split, and what fooled the model; tensors on the CPU.

    `budget` is one of the plan's, `size` the perturbation's own, both in the unit of the threat.
    """

    row: int
    budget: float
    size: float
    prediction: int
    confidence: float
    adversarial: Tensor
    flow: Tensor | None


def shown(attack: AttackColumns, most: int) -> NDArray[np.int64]:
    """Places of the samples to keep a picture of: the first `most` fooled at each budget.

    They depend on the order of the samples alone, and so the pictures of shards are, put together,
    those of the whole.
    """
    places = [np.flatnonzero(new)[:most] for new in attack.newly_fooled()]
    return np.sort(np.concatenate(places))
