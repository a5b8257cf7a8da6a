"""What both versions of stAdv share: a flow whose smoothness has a price, and what a budget is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from .base import FlowAttack
from .perturbed import Perturbed
from .smoothness import Neighbours
from .threats import FLOW, TAU, Threat


@dataclass(frozen=True)
class PricedFlow(FlowAttack):
    """Lowers the right logit's lead + tau * smoothness of the flow (arXiv 1801.02612, equation 3).

    `over` says what a budget is: with `bound` the largest move in pixels; with `tau` 1/tau, in
    place of the field, and nothing bounds the flow.
    """

    usual_loss: ClassVar[str] = "margin"

    tau: float = 0.05
    neighbours: Neighbours = "diagonal"
    over: Literal["bound", "tau"] = "bound"

    @property
    def threat(self) -> Threat:
        return FLOW if self.over == "bound" else TAU

    @property
    def shrinks(self) -> bool:
        return self.over == "bound"

    def size(self, found: Perturbed) -> Tensor:
        """What the flows (B,2,H,W) move, or nothing where the budget bounds no flow."""
        return FLOW.size(found.flow) * (self.over == "bound")

    def terms(self, budget: float) -> tuple[float, float]:
        """The bound on a flow in pixels, and the price of its smoothness, for a budget above 0."""
        return (budget, self.tau) if self.over == "bound" else (math.inf, 1 / budget)
