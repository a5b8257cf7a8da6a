"""Decoupled direction and norm (Rony et al. 2019, arXiv 1811.09600, algorithm 1), in l2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..core import Loss, Samples
from .fmn import LAST_STEP, annealed, judge_last, room, uphill
from .geometry import per_sample, steepest
from .minimum_norm import MinimumNormAttack, Nearest

FIRST_SIZE = 1.0  # of the perturbation, in image units; the paper's


@dataclass(frozen=True)
class DDN(MinimumNormAttack):
    """Steps along the gradient's direction, on a sphere that shrinks where the model is fooled.

    The sphere begins at size 1 and changes by the share `gamma` a step; the steps' length falls
    from 1 to 0.01 image units along a cosine. Where a gradient is zero, which happens where the
    cross-entropy underflows, the direction is random. The paper's rounding to 8 bits is left out.

    A finite budget bounds the sphere from the start, so that nothing beyond it is looked at.
    """

    norm: Literal["l2"] = "l2"
    steps: int = 100
    gamma: float = 0.05

    def search(
        self, model: nn.Module, x: Tensor, y: Tensor, budget: float, loss: Loss, samples: Samples
    ) -> Tensor:
        nearest = Nearest(x, self.norm)
        rows = torch.arange(len(x), device=x.device)
        widest = room(x, budget, self.norm)
        size = widest.clamp_max(FIRST_SIZE)
        moved = x
        for step in range(self.steps):
            _, fooled, gradient = uphill(model, moved, y, loss, samples)
            nearest.offer(moved, fooled, rows)
            keep = nearest.distance[rows] > 0
            if not bool(keep.all()):  # fooled without any attack
                samples, rows, moved = samples.select(keep), rows[keep], moved[keep]
                x, y, widest, size = x[keep], y[keep], widest[keep], size[keep]
                fooled, gradient = fooled[keep], gradient[keep]
            if len(rows) == 0:
                return nearest.images
            size = torch.where(fooled, size * (1 - self.gamma), size * (1 + self.gamma))
            size = torch.minimum(size, widest)
            length = annealed(1.0, LAST_STEP, step / self.steps)
            delta = moved - x + length * _direction(gradient, samples)
            moved = (x + per_sample(size, x) * steepest(delta, "l2")).clamp(0, 1)
        judge_last(model, moved, y, loss, samples, nearest, rows)
        return nearest.images


def _direction(gradient: Tensor, samples: Samples) -> Tensor:
    """The gradient's direction, a random one for samples without a gradient."""
    flat = ~gradient.flatten(1).any(1)
    if bool(flat.any()):
        gradient = gradient.clone()
        gradient[flat] = samples.select(flat).normal(gradient[flat])
    return steepest(gradient, "l2")
