"""Projected gradient ascent on a flow: steepest ascent inside a ball of flows, in pixels.

The multi-step attack of the flow-gradient paper (Xia & Li, Neurocomputing 2021, arXiv 2008.12997)
is the sign ascent among them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import Literal

import torch
from torch import Tensor, nn

from ..core import Loss, Samples, UserError
from ..deformation import identity_flow
from .any_loss import AnyLoss
from .ascent import ascend, in_turn
from .base import Attack, FlowAttack
from .climb import HalvingSteps, climb
from .geometry import random_point, shrink, steepest
from .threats import FLOW, FLOW_L2, Threat


@dataclass(frozen=True)
class FlowPGD(AnyLoss, FlowAttack):
    """Steps along the sign (linf) or the direction (l2) of the flow's gradient.

    In linf no pixel moves further, along either axis, than the budget in pixels; in l2 the root
    mean square of the moves is bounded, and a few pixels may move far. `step_size` is in budgets,
    and `rule` says of which step: `fixed`, of each; `falling`, of the mean step, where steps fall
    evenly from nearly twice that to nearly nothing; `halving`, of the first, where each sample
    halves its own when it gets no further and goes on from its best flow (APGD, see `climb`; one
    more forward a search). `momentum`, below 1, is the share of the last move in the next (0.25 in
    APGD).

    The first search starts at rest, where the warp's derivative is the image's central difference
    and so shows the better of the two sides of the pixel; a random flow has already settled on a
    side, so a first search from there (`random_start`) fools fewer samples. `restarts` beyond the
    first attack only what is not yet fooled, each from a random point of the ball.

    The paper's own attack, 100 fixed steps of a hundredth of the budget from rest, is the entry
    "fgr". Its code takes the image to be black beyond the edge, which `padding="zeros"` selects.
    """

    steps: int = 20
    step_size: float = 0.25
    random_start: bool = False
    restarts: int = 1
    early_stop: bool = True
    norm: Literal["linf", "l2"] = "linf"
    momentum: float = 0.0
    rule: Literal["fixed", "falling", "halving"] = "falling"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.momentum >= 1:
            raise UserError(f"{type(self).__name__}: momentum must be below 1, not {self.momentum}")

    @property
    def threat(self) -> Threat:
        return FLOW if self.norm == "linf" else FLOW_L2

    @property
    def compares(self) -> bool:
        return self.rule == "halving"

    @property
    def scout(self) -> Attack:
        whole = replace(self, steps=1, step_size=1.0, rule="fixed")
        return replace(whole, random_start=False, restarts=1, momentum=0.0)

    def deform(
        self, model: nn.Module, x: Tensor, y: Tensor, budget: float, loss: Loss, samples: Samples
    ) -> Tensor:
        def search(random: bool, x: Tensor, y: Tensor, _: Tensor, samples: Samples) -> Tensor:
            start = identity_flow(x)
            if random:
                start = random_point(start, budget, self.threat.name, samples)
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
        if self.rule == "halving":
            return self._climb_halving(model, x, y, start, budget, loss, samples)
        return ascend(
            model,
            x,
            y,
            torch.stack((start, start), dim=1),
            loss,
            samples,
            steps=self.steps,
            render=lambda x, state: self.render(x, state[:, 0]),
            step=self._step(budget),
            early_stop=self.early_stop,
        )[:, 0]

    def _step(self, budget: float) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """A step for `ascend`.

        The parameter (B,2,2,H,W) is the flow with the one before it, so that both leave the batch
        with the sample they belong to.
        """
        turns = count()

        def step(_: Tensor, state: Tensor, gradient: Tensor) -> Tensor:
            turn = next(turns)
            flow, before = state.unbind(1)
            length = self._size_of(turn) * budget
            moved = self._inside(budget, flow + length * self._along(gradient[:, 0]))
            if self.momentum > 0 and turn > 0:
                drift = (flow - before) - (moved - flow)
                moved = self._inside(budget, moved + self.momentum * drift)
            return torch.stack((moved, flow), dim=1)

        return step

    def _size_of(self, turn: int) -> float:
        """The size of a step, counted from 0, in budgets; their mean is `step_size`."""
        if self.rule == "fixed":
            return self.step_size
        return self.step_size * (2 * (self.steps - turn) - 1) / self.steps

    def _climb_halving(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        start: Tensor,
        budget: float,
        loss: Loss,
        samples: Samples,
    ) -> Tensor:
        rule = HalvingSteps(
            start,
            self.step_size * budget,
            self._along,
            lambda _, flow: self._inside(budget, flow),
            steps=self.steps,
            momentum=1 - self.momentum,  # there the share of the new move
        )
        reached = climb(
            model,
            x,
            y,
            start,
            loss,
            samples,
            rule,
            steps=self.steps,
            early_stop=self.early_stop,
            render=self.render,
        )
        return reached.found

    def _along(self, gradient: Tensor) -> Tensor:
        return steepest(gradient, self.threat.name)

    def _inside(self, budget: float, flow: Tensor) -> Tensor:
        return shrink(flow, budget, self.threat.name)
