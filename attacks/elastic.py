"""Elastic deformations: smoothed random fields (Simard, Steinkraus and Platt 2003, section 2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..core import Loss, Samples
from ..deformation import identity_flow, max_displacement
from .any_loss import AnyLoss
from .ascent import judged
from .base import FlowAttack
from .geometry import Radius, per_sample
from .smoothing import smoothed
from .transforms import TINY, scaled, smooth_ladder


@dataclass(frozen=True)
class Elastic(AnyLoss, FlowAttack):
    """The worst of `draws` random fields, each scaled so that its largest move is the budget.

    A field is uniform noise smoothed by a Gaussian whose standard deviation is `sigma` of the
    image's longer side: 4 px at 32, as Simard et al. smooth their 29 px digits. A sample leaves at
    the first field that fools it, and else keeps the one of highest loss; it costs a forward pass a
    draw and no gradient.
    """

    draws: int = 10
    sigma: float = 0.125

    @property
    def compares(self) -> bool:
        return True

    def default_budgets(self, height: int, width: int) -> tuple[float, ...]:
        return smooth_ladder(height, width)

    def smaller(self, flow: Tensor, budgets: Radius) -> Tensor:
        return scaled(flow, budgets)

    def deform(
        self, model: nn.Module, x: Tensor, y: Tensor, budget: float, loss: Loss, samples: Samples
    ) -> Tensor:
        found = identity_flow(x)
        highest = x.new_full((len(x),), -torch.inf)
        standing = torch.arange(len(x), device=x.device)
        for _ in range(self.draws):
            if len(standing) == 0:
                break
            part = samples.select(standing)
            flow = self._field(found[standing], budget, part)
            images = self.moved(x[standing], flow).images
            losses, fooled = judged(model, images, y[standing], loss, part)
            better = fooled | (losses > highest[standing])
            found[standing[better]], highest[standing[better]] = flow[better], losses[better]
            standing = standing[~fooled]
        return found

    def _field(self, like: Tensor, budget: float, samples: Samples) -> Tensor:
        """Random flows shaped as `like` (B,2,H,W), of the budget's size."""
        field = smoothed(samples.uniform(like), self.sigma * max(like.shape[2:]))
        return field * per_sample(budget / max_displacement(field).clamp_min(TINY), field)
