"""Spatially transformed adversarial examples (Xiao et al. 2018, arXiv 1801.02612), bounded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..core import Loss, Samples
from ..deformation import identity_flow
from ..losses import cross_entropy, margin
from .ascent import ascend, in_turn
from .base import FlowAttack
from .flow import FlowPGD
from .smoothness import Neighbours, smoothness

DECAY_1, DECAY_2, TINY = 0.9, 0.999, 1e-12  # of Adam (arXiv 1412.6980)


@dataclass(frozen=True)
class StAdv(FlowAttack):
    """Minimise the right logit's lead + tau * smoothness over flows of at most `budget` pixels.

    Equations 3 to 5 of the paper, untargeted, with kappa = 0: the lead is z_y - max_{i != y} z_i,
    and a sample is done as soon as that is negative (there the paper's hinge would begin). `tau` is
    the price of smoothness for flows in pixels, as in the paper.

    First `steps` of Adam from rest with a step of `rate` budgets, the flow clamped to the budget
    after each. Smoothness leaves some samples standing that a rough flow of the same size fools, so
    a bounded attack that stopped here would flatter the model: on those, `finish` steps of sign
    ascent follow, as in FlowPGD, from where Adam ended, and then as many from rest. They raise the
    cross-entropy where `loss` is the margin, which sees a single rival class and gets stuck sooner;
    any other loss they raise as it is. The paper's own optimisation, smooth to the end, is
    `StAdvLBFGS`.
    """

    loss_name: ClassVar[str] = "margin"

    steps: int = 25
    rate: float = 0.125
    tau: float = 0.05
    neighbours: Neighbours = "diagonal"
    finish: int = 40
    finish_size: float = 0.1

    def deform(
        self, model: nn.Module, x: Tensor, y: Tensor, budget: float, loss: Loss, samples: Samples
    ) -> Tensor:
        def smooth(x: Tensor, y: Tensor, flow: Tensor, samples: Samples) -> Tensor:
            state = torch.stack((flow, torch.zeros_like(flow), torch.zeros_like(flow)), dim=1)
            return ascend(
                model,
                x,
                y,
                state,
                loss,
                samples,
                steps=self.steps,
                render=lambda x, state: self.render(x, state[:, 0]),
                step=adam(self.rate * budget, budget),
                early_stop=True,
                cost=lambda state: self.tau * smoothness(state[:, 0], self.neighbours),
            )[:, 0]

        def rough(x: Tensor, y: Tensor, flow: Tensor, samples: Samples) -> Tensor:
            return finish.climb(model, x, y, flow, budget, raised, samples)

        def afresh(x: Tensor, y: Tensor, _: Tensor, samples: Samples) -> Tensor:
            return finish.deform(model, x, y, budget, raised, samples)

        finish = FlowPGD(self.padding, self.finish, self.finish_size)
        raised = cross_entropy if loss == margin else loss
        searches = (smooth, rough, afresh)
        start = identity_flow(x)
        return in_turn(searches, model, x, y, start, loss, samples, render=self.render)


def adam(rate: float, budget: float) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Adam's step for `ascend`, clamped to the budget, in the flow's unit.

    The parameter (B,3,2,H,W) is the flow with its two running moments, so that they leave the batch
    with the sample they belong to.
    """
    turns = count(1)

    def step(_: Tensor, state: Tensor, gradient: Tensor) -> Tensor:
        turn = next(turns)
        flow, first, second = state.unbind(1)
        slope = gradient[:, 0]
        first = DECAY_1 * first + (1 - DECAY_1) * slope
        second = DECAY_2 * second + (1 - DECAY_2) * slope.square()
        mean = first / (1 - DECAY_1**turn)
        spread = (second / (1 - DECAY_2**turn)).sqrt()
        moved = (flow + rate * mean / (spread + TINY)).clamp(-budget, budget)
        return torch.stack((moved, first, second), dim=1)

    return step
