"""The fast gradient method (Goodfellow et al. 2015, arXiv 1412.6572, equation in section 4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from ..core import Loss, Samples
from .any_loss import AnyLoss
from .ascent import as_given, ascend
from .geometry import project, steepest
from .threats import THREATS, Threat


@dataclass(frozen=True)
class FGSM(AnyLoss):
    """One step of the whole budget along the sign (linf) or the direction (l2) of the gradient."""

    norm: Literal["linf", "l2"] = "linf"

    @property
    def threat(self) -> Threat:
        return THREATS[self.norm]

    def perturb(
        self, model: nn.Module, x: Tensor, y: Tensor, budget: float, loss: Loss, samples: Samples
    ) -> Tensor:
        def step(x: Tensor, _: Tensor, gradient: Tensor) -> Tensor:
            return project(x, x + budget * steepest(gradient, self.norm), budget, self.norm)

        return ascend(
            model,
            x,
            y,
            x,
            loss,
            samples,
            steps=1,
            render=as_given,
            step=step,
            early_stop=False,
        )
