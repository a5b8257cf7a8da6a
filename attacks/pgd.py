"""Projected gradient descent (Madry et al. 2018, arXiv 1706.06083, section 2.1) in linf and l2."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from ..core import Loss, Samples
from .ascent import ascend, in_turn
from .base import Attack
from .threats import THREATS, Threat


@dataclass(frozen=True)
class PGD(Attack):
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

    def perturb(
        self, model: nn.Module, x: Tensor, y: Tensor, budget: float, loss: Loss, samples: Samples
    ) -> Tensor:
        def step(x: Tensor, adversarial: Tensor, gradient: Tensor) -> Tensor:
            moved = adversarial + self.step_size * budget * steepest(gradient, self.norm)
            return project(x, moved, budget, self.norm)

        def search(random: bool, x: Tensor, y: Tensor, _: Tensor, samples: Samples) -> Tensor:
            start = x
            if random:
                noise = random_point(x, budget, self.norm, samples)
                start = project(x, x + noise, budget, self.norm)
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


def as_given(_: Tensor, adversarial: Tensor) -> Tensor:
    """The perturbed images are themselves the parameter."""
    return adversarial


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.dim() - 1))


def steepest(gradient: Tensor, norm: str) -> Tensor:
    """The direction of steepest ascent of size 1 in the norm; zero where the gradient is zero."""
    if norm == "linf":
        return gradient.sign()
    # Scaled by the largest entry first: the squares of a confident model's gradient may underflow.
    tiny = torch.finfo(gradient.dtype).tiny
    largest = gradient.abs().flatten(1).amax(1).clamp_min(tiny)
    scaled = gradient / _per_sample(largest, gradient)
    return scaled / _per_sample(THREATS[norm].size(scaled).clamp_min(1e-15), gradient)


def project(x: Tensor, adversarial: Tensor, budget: float, norm: str) -> Tensor:
    """The nearest point of the ball of radius `budget` about x, then of [0,1]."""
    delta = adversarial - x
    if norm == "linf":
        delta = delta.clamp(-budget, budget)
    else:
        size = THREATS[norm].size(delta)
        delta = delta * _per_sample((budget / size.clamp_min(1e-30)).clamp_max(1), delta)
    return (x + delta).clamp(0, 1)


def random_point(x: Tensor, budget: float, norm: str, samples: Samples) -> Tensor:
    """A random perturbation inside the ball of radius `budget`.

    Uniform in the linf ball; in the l2 ball of uniform direction and uniform length: points uniform
    in the ball all lie at its surface in many dimensions, from where fewer samples are fooled.
    """
    if norm == "linf":
        return budget * samples.uniform(x)
    length = (samples.uniform(x[:, :1, :1, :1]) + 1) / 2  # uniform in [0,1)
    return budget * length * steepest(samples.normal(x), norm)
