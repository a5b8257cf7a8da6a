"""The objective at attacked images (Madry et al. 2018, arXiv 1706.06083, equation 2.1)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..attacks import Attack
from ..core import Loss, Samples
from .base import Objective
from .weights import Moment


@dataclass(frozen=True)
class AdversarialTraining:
    """`inner` at images that `attack` has perturbed, so that it composes with every penalty.

    The attack sees the model in evaluation mode; with `as_trained` it sees it as the training pass
    will, with the batch's own statistics in the batch norms and the same dropout masks, as the code
    of Wong et al. does (2020, arXiv 2001.03994, without the same masks). Either way, the batch
    norms' running statistics are those of the attacked images that the weights are then trained on,
    and of no other.
    """

    attack: Attack
    budget: float
    inner: Objective
    as_trained: bool = False

    def backward(self, model: nn.Module, x: Tensor, y: Tensor, loss: Loss) -> dict[str, Tensor]:
        """See `Objective.backward`; logs what the inner objective logs."""
        samples = fresh_samples(x)
        if self.as_trained:
            with Moment.of(model, x.device).again():
                found = self.attack.outcome(model, x, y, self.budget, loss, samples)
            attacked = self.attack.within(x, found, self.budget).images
        else:
            attacked = self.attack(model, x, y, budget=self.budget, loss=loss, samples=samples)
        return self.inner.backward(model, attacked, y, loss)

    def at(self, epoch: float) -> AdversarialTraining:
        return replace(self, inner=self.inner.at(epoch))


def fresh_samples(x: Tensor) -> Samples:
    """Random streams for a batch (B,...), keyed by a draw from torch's global generator."""
    return Samples(range(len(x)), int(torch.randint(2**62, ())))
