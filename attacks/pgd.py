"""Projected gradient descent (Madry et al. 2018, arXiv 1706.06083, section 2.1) in linf and l2."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import Tensor, nn

from ..core import Loss, Samples
from .any_loss import AnyLoss
from .ascent import as_given, ascend, in_turn
from .base import Attack
from .fgsm import FGSM
from .geometry import project, random_point, steepest
from .threats import THREATS, Threat


@dataclass(frozen=True)
class PGD(AnyLoss):
    """Steps of `step_size` budgets along the sign (linf) or the direction (l2) of the gradient.

    `random_start` begins at a random point of the ball instead of at the image; `restarts` beyond
    the first attack only what is not yet fooled, each from another such point.
    """

    norm: Literal["linf", "l2"] = "linf"
    steps: int = 20
    step_size: float = 0.125
    random_start: bool = True
    restarts: int = 1
    early_stop: bool = True

    @property
    def threat(self) -> Threat:
        return THREATS[self.norm]

    @property
    def scout(self) -> Attack:
        return FGSM(self.norm, loss=self.loss)

    def perturb(
        self, model: nn.Module, x: Tensor, y: Tensor, budget: float, loss: Loss, samples: Samples
    ) -> Tensor:
        def step(x: Tensor, adversarial: Tensor, gradient: Tensor) -> Tensor:
            moved = adversarial + self.step_size * budget * steepest(gradient, self.norm)
            return project(x, moved, budget, self.norm)

        def search(random: bool, x: Tensor, y: Tensor, _: Tensor, samples: Samples) -> Tensor:
            start = self.start(x, budget, samples) if random else x
            return ascend(
                model,
                x,
                y,
                start,
                loss,
                samples,
                steps=self.steps,
                render=as_given,
                step=step,
                early_stop=self.early_stop,
            )

        searches = [partial(search, self.random_start or n > 0) for n in range(self.restarts)]
        return in_turn(searches, model, x, y, x, loss, samples, render=as_given)

    def start(self, x: Tensor, budget: float, samples: Samples) -> Tensor:
        """Where a random search begins: images (B,C,H,W) inside the budget and [0,1]."""
        noise = random_point(x, budget, self.norm, samples)
        return project(x, x + noise, budget, self.norm)
