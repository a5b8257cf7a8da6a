"""Ascent on a flow that looks at the whole ball, not at the slope where each pixel stands.

A pixel's colour is bilinear in its displacement between whole pixels, with kinks there. Its slope
tells of one such patch; but what an image gains, to first order in its colours, from any place the
pixel may be read at is known without asking the model, and the best place is a corner of a patch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import count, product

import torch
from torch import Tensor, nn

from ..core import Loss, Samples
from ..deformation import identity_flow, warp
from .any_loss import AnyLoss
from .ascent import ascend
from .base import Attack, FlowAttack
from .climb import exceeds

MOST = 4  # whole displacements tried to either side of an axis; beyond, as many evenly spread


@dataclass(frozen=True)
class FlowVertex(AnyLoss, FlowAttack):
    """Each pixel goes towards the best place of the ball for the image's gradient, again and again.

    A conditional-gradient method (Frank & Wolfe 1956) in each pixel's box of displacements: with
    g = dL/dimage at the image so far, a pixel aims at the displacement d that maximises the inner
    product of g and the clean image's colour there. The maximum is exact for budgets up to 4
    pixels: it lies where each coordinate is a whole number or at the end of the box. A step covers
    at most `step_size` budgets along an axis at the start, and less and less, evenly, to the end.
    """

    steps: int = 20
    step_size: float = 1.0
    early_stop: bool = True

    @property
    def scout(self) -> Attack:
        return replace(self, steps=1, step_size=1.0)

    def deform(
        self, model: nn.Module, x: Tensor, y: Tensor, budget: float, loss: Loss, samples: Samples
    ) -> Tensor:
        turns, channels = count(), x.shape[1]

        def step(x: Tensor, state: Tensor, gradient: Tensor) -> Tensor:
            flow, most = state[:, channels:], self.step_size * budget
            most *= 1 - next(turns) / self.steps
            aim = self.best_places(x, state, gradient[:, :channels], budget)
            flow = flow + (aim - flow).clamp(-most, most)
            return torch.cat((self.moved(x, flow).images, flow), dim=1)

        state = torch.cat((x, identity_flow(x)), dim=1)  # the image, beside the flow that makes it
        reached = ascend(
            model,
            x,
            y,
            state,
            loss,
            samples,
            steps=self.steps,
            render=lambda _, state: state[:, :channels],
            step=step,
            early_stop=self.early_stop,
        )
        return reached[:, channels:]

    def best_places(self, x: Tensor, state: Tensor, gradient: Tensor, budget: float) -> Tensor:
        """The flow (B,2,H,W) inside the ball that gains most for a gradient (B,C,H,W) of the image.

        `state` (B,C+2,H,W) is the image so far and its flow: a pixel stays where it is unless it
        gains elsewhere by more than rounding, or two places worth the same would draw it between.
        """
        image, flow = state[:, :-2], state[:, -2:]
        gain = (gradient * image).sum(1)
        for right, down in product(candidates(budget), repeat=2):
            place = x.new_tensor([right, down]).view(1, 2, 1, 1)
            here = (gradient * warp(x, place.expand(len(x), -1, -1, -1), self.padding)).sum(1)
            better = exceeds(here, gain)
            gain = torch.where(better, here, gain)
            flow = torch.where(better[:, None], place, flow)
        return flow


def candidates(budget: float) -> list[float]:
    """Where along an axis the best displacement may lie: at rest, whole pixels, and the ends."""
    whole = range(1, math.ceil(budget))
    if len(whole) > MOST:
        whole = range(1, math.ceil(budget), -(-len(whole) // MOST))
    return [0.0, *(sign * length for length in (*map(float, whole), budget) for sign in (1, -1))]
