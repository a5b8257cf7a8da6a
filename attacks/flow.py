"""Projected gradient ascent on a flow: the multi-step attack of the flow-gradient paper, and stronger.

Xia & Li, Neurocomputing 2021, arXiv 2008.12997: sign ascent on a flow inside a linf ball.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from ..core import Loss, Samples
from ..deformation import identity_flow
from .ascent import ascend, in_turn
from .base import FlowAttack


@dataclass(frozen=True)
class FlowPGD(FlowAttack):
    """Steps of `step_size` budgets along the sign of the flow's gradient; no pixel moves further, along
    either axis, than the budget (in pixels).

    `random_start` begins at a uniform flow inside the budget instead of at rest, where the warp's
    derivative is the image's central difference; `restarts` are as in PGD.

    The paper's own attack, 100 steps of a hundredth of the budget from rest, is the entry "fgr"; its
    code takes the image to be black beyond the edge, which `FlowPGD(padding="zeros", ...)` selects.
    """

    steps: int = 20
    step_size: float = 0.125
    random_start: bool = True
    restarts: int = 1
    early_stop: bool = True

    def deform(
        self, model: nn.Module, x: Tensor, y: Tensor, budget: float, loss: Loss, samples: Samples
    ) -> Tensor:
        def step(_: Tensor, flow: Tensor, gradient: Tensor) -> Tensor:
            return sign_step(flow, gradient, self.step_size * budget, budget)

        def search(x: Tensor, y: Tensor, flow: Tensor, samples: Samples) -> Tensor:
            return ascend(
                model,
                x,
                y,
                budget * samples.uniform(flow) if self.random_start else identity_flow(x),
                loss,
                samples,
                steps=self.steps,
                render=self.render,
                step=step,
                early_stop=self.early_stop,
            )

        searches = [search] * self.restarts
        start = identity_flow(x)
        return in_turn(searches, model, x, y, start, loss, samples, render=self.render)


def sign_step(flow: Tensor, gradient: Tensor, length: float, budget: float) -> Tensor:
    """`flow` (B,2,H,W) moved by `length` pixels along the gradient's sign, kept inside the budget."""
    return (flow + length * gradient.sign()).clamp(-budget, budget)
