"""Ascent along gradients averaged over noise, for loss surfaces too rough or too flat to follow.

Athalye et al. 2018 (arXiv 1802.00420, section 4.2) average gradients over a defence's own random
transformations; here the averaging itself is the point, since a step or a ripple that hides the
slope of a loss does not hide the slope of its mean over a neighbourhood.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ..core import Loss, Samples, loss_at
from .any_loss import AnyLoss
from .ascent import judged
from .geometry import project, steepest
from .threats import THREATS, Threat


@dataclass(frozen=True)
class SmoothedPGD(AnyLoss):
    """Steps of `step_size` budgets, each along the mean of the gradients at `draws` noisy copies.

    The noise is uniform (linf) or normal (l2) and of `noise` budgets' size. It is drawn about the
    current point, and the copies are clipped to [0,1]. Every iterate but the last is judged, and a
    sample leaves with the first that fools; one that stands costs draws + 1 forwards and draws
    backwards a step.
    """

    usual_loss: ClassVar[str] = "margin"

    norm: Literal["linf", "l2"] = "linf"
    steps: int = 50
    step_size: float = 0.1
    draws: int = 10
    noise: float = 0.5

    @property
    def threat(self) -> Threat:
        return THREATS[self.norm]

    def perturb(
        self, model: nn.Module, x: Tensor, y: Tensor, budget: float, loss: Loss, samples: Samples
    ) -> Tensor:
        found, adversarial = x.clone(), x
        active = torch.arange(len(x), device=x.device)
        for turn in range(self.steps):
            now = loss_at(loss, turn + 1, self.steps)
            _, fooled = judged(model, adversarial, y, loss, samples)
            found[active[fooled]] = adversarial[fooled]
            keep = ~fooled
            active, samples = active[keep], samples.select(keep)
            x, y, adversarial = x[keep], y[keep], adversarial[keep]
            if len(active) == 0:
                return found
            gradient = torch.zeros_like(x)
            for _ in range(self.draws):
                place = (adversarial + self._noise(x, budget, samples)).clamp(0, 1)
                gradient += _gradient(model, place, y, now)
                samples.book(forwards=1, backwards=1)
            step = self.step_size * budget * steepest(gradient, self.norm)
            adversarial = project(x, adversarial + step, budget, self.norm)
        found[active] = adversarial
        return found

    def _noise(self, x: Tensor, budget: float, samples: Samples) -> Tensor:
        if self.norm == "linf":
            return self.noise * budget * samples.uniform(x)
        return self.noise * budget * samples.normal(x) / math.sqrt(x[0].numel())


def _gradient(model: nn.Module, x: Tensor, y: Tensor, loss: Loss) -> Tensor:
    place = x.detach().requires_grad_()
    gradients: tuple[Tensor, ...] = torch.autograd.grad(loss(model, place, y).sum(), place)
    # Finite, and so small that a sum of them stays finite.
    most = torch.finfo(x.dtype).max / 1e6
    return gradients[0].nan_to_num().clamp(-most, most)
