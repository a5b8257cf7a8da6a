"""Projected gradient ascent on a flow: sign ascent inside a linf ball, in pixels.

The multi-step attack of the flow-gradient paper (Xia & Li, Neurocomputing 2021, arXiv 2008.12997).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor, nn

from ..core import Loss, Samples
from ..deformation import identity_flow
from .ascent import ascend, in_turn
from .base import Attack, FlowAttack


@dataclass(frozen=True)
class FlowPGD(FlowAttack):
    """Steps of `step_size` budgets along the sign of the flow's gradient.

    No pixel moves further, along either axis, than the budget in pixels. The first search starts at
    rest, where the warp's derivative is the image's central difference and so shows the better of
    the two sides of the pixel; a random flow has already settled on a side, so a first search from
    there (`random_start`) fools fewer samples. `restarts` beyond the first attack only what is not
    yet fooled, each from a uniform point of the ball.

    The paper's own attack, 100 steps of a hundredth of the budget from rest, is the entry "fgr".
    Its code takes the image to be black beyond the edge, which `padding="zeros"` selects.
    """

    steps: int = 20
    step_size: float = 0.125
    random_start: bool = False
    restarts: int = 1
    early_stop: bool = True

    @property
    def scout(self) -> Attack:
        return replace(self, steps=1, step_size=1.0, random_start=False, restarts=1)

    def deform(
        self, model: nn.Module, x: Tensor, y: Tensor, budget: float, loss: Loss, samples: Samples
    ) -> Tensor:
        def search(random: bool, x: Tensor, y: Tensor, flow: Tensor, samples: Samples) -> Tensor:
            start = budget * samples.uniform(flow) if random else identity_flow(x)
            return self.climb(model, x, y, start, budget, loss, samples)

        searches = [partial(search, self.random_start or n > 0) for n in range(self.restarts)]
        start = identity_flow(x)
        return in_turn(searches, model, x, y, start, loss, samples, render=self.render)

    def climb(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        start: Tensor,
        budget: float,
        loss: Loss,
        samples: Samples,
    ) -> Tensor:
        """One ascent on a frozen model from the flow `start` (B,2,H,W)."""

        def step(_: Tensor, flow: Tensor, gradient: Tensor) -> Tensor:
            moved = flow + self.step_size * budget * gradient.sign()
            return moved.clamp(-budget, budget)

        return ascend(
            model,
            x,
            y,
            start,
            loss,
            samples,
            steps=self.steps,
            render=self.render,
            step=step,
            early_stop=self.early_stop,
        )
