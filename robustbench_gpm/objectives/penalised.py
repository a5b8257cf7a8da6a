"""The mean loss plus any number of input-gradient penalties."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from ..core import Loss
from .attention import double_backward_attention
from .base import Penalty
from .modes import PenaltyMode, Weighted, by_differences, by_double_backward


@dataclass(frozen=True)
class Penalised:
    """mean_i L_i + sum_k w_k mean_i P_k(dL_i/dx_i); without penalties, the baseline.

    All penalties share their passes. How these are made is `mode`'s (modes.py). `at` says how far
    training is, by which weights rise; lazy penalties also need the number of batches an epoch.
    """

    penalties: tuple[Penalty, ...] = ()
    mode: PenaltyMode = PenaltyMode()
    batches: int | None = field(default=None, repr=False, compare=False)
    epoch: float = field(default=math.inf, repr=False)

    def at(self, epoch: float) -> Penalised:
        """The same once `epoch` epochs (a fraction counts) are done; without penalties, itself."""
        return replace(self, epoch=epoch) if self.penalties else self

    def weighted(self) -> list[Weighted]:
        """The penalties to take now, each with its weight now."""
        if not self.penalties:
            return []
        factor = self.mode.factor(self.epoch, self.batches)
        now = [(p, factor * p.ramp(self.epoch) * p.weight) for p in self.penalties]
        return [(penalty, weight) for penalty, weight in now if weight > 0]

    def backward(self, model: nn.Module, x: Tensor, y: Tensor, loss: Loss) -> dict[str, Tensor]:
        """See `Objective.backward`; logs the loss and, where taken, penalties before their weight.

        Images are prepared (FlowGradient's random start) whether or not the penalty has a weight
        now, so that the loss is taken at the same images throughout.
        """
        for penalty in self.penalties:
            x = penalty.prepare(x)
        weighted = self.weighted()
        if not weighted:
            mean_loss = loss(model, x, y).mean()
            mean_loss.backward()  # type: ignore[no-untyped-call]
            return {"loss": mean_loss.detach()}
        if self.mode.penalty_mode == "finite_difference":
            return by_differences(weighted, self.mode.difference_step, model, x, y, loss)
        with double_backward_attention(model):
            return by_double_backward(weighted, model, x, y, loss)
