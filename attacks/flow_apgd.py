"""APGD's step rule (Croce & Hein 2020, arXiv 2003.01690) on flows, after plain ascent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from ..core import Loss, Samples
from ..deformation import identity_flow
from .any_loss import AnyLoss
from .ascent import in_turn
from .base import Attack, FlowAttack
from .flow import FlowPGD
from .threats import Threat


@dataclass(frozen=True)
class FlowAPGD(AnyLoss, FlowAttack):
    """A fifth of the `steps` as `FlowPGD` makes them, then APGD on whom they left standing.

    Both start at rest and end in different places, each pixel on one side or the other of where it
    was: together they fool more than as many steps of either. With 100 steps whatever flow-pgd
    fools is fooled here too. A sample that stands costs `steps` backwards, and as many forwards
    and two more. `restarts` beyond the first are APGD's, each from a random point of the ball.
    """

    norm: Literal["linf", "l2"] = "linf"
    steps: int = 100
    restarts: int = 1
    early_stop: bool = True

    @property
    def threat(self) -> Threat:
        return self._plain.threat

    @property
    def compares(self) -> bool:
        return True

    @property
    def scout(self) -> Attack | None:
        return self._plain.scout

    def deform(
        self, model: nn.Module, x: Tensor, y: Tensor, budget: float, loss: Loss, samples: Samples
    ) -> Tensor:
        def plain(x: Tensor, y: Tensor, _: Tensor, samples: Samples) -> Tensor:
            return self._plain.deform(model, x, y, budget, loss, samples)

        def halving(x: Tensor, y: Tensor, _: Tensor, samples: Samples) -> Tensor:
            return self._halving.deform(model, x, y, budget, loss, samples)

        searches = (plain, halving) if self.steps > 1 else (plain,)
        start = identity_flow(x)
        return in_turn(searches, model, x, y, start, loss, samples, render=self.render)

    @property
    def _plain(self) -> FlowPGD:
        steps = max(self.steps // 5, 1)
        return FlowPGD(
            self.padding, steps, early_stop=self.early_stop, norm=self.norm, loss=self.loss
        )

    @property
    def _halving(self) -> FlowPGD:
        return FlowPGD(
            self.padding,
            self.steps - self._plain.steps,
            step_size=1.0,  # less than APGD's 2: from rest the whole ball is one budget away
            restarts=self.restarts,
            early_stop=self.early_stop,
            norm=self.norm,
            momentum=0.25,
            rule="halving",
        )
