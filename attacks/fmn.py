"""Fast minimum-norm attacks (Pintor et al. 2021, arXiv 2102.12827, algorithm 1)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ..core import Loss, Samples
from .geometry import per_sample, project, steepest
from .minimum_norm import MinimumNormAttack, Nearest
from .threats import THREATS

DUAL = {"linf": "l1", "l2": "l2", "l1": "linf"}
LAST_GAMMA = 0.001
LAST_STEP = 0.01  # of the first


@dataclass(frozen=True)
class FMN(MinimumNormAttack):
    """Gradient steps in a ball whose radius follows the model's boundary.

    A step moves by `step_size` image units along the gradient's l2 direction, whatever the norm,
    then back into the ball. The radius shrinks where the model is fooled and grows where it is not,
    by the share `gamma` a step (l0: by one value at least). Step and share fall along a cosine, to
    1% of `step_size` and to 0.001. The last iterate is judged too, so that a sample costs `steps`
    backward passes and one forward pass more.

    Until a sample is fooled its radius is where a linear model would be. Unlike in the paper,
    values that [0,1] stops are left out of that estimate, in l1 and l2 of the steps until then too,
    and the radius is 0.1% more: or many samples would come ever closer to the boundary and not
    cross it.

    A finite budget bounds the radius from the start, so that nothing beyond it is looked at.
    """

    usual_loss: ClassVar[str] = "margin"

    norm: Literal["l0", "l1", "l2", "linf"] = "l2"
    steps: int = 100
    step_size: float = 1.0
    gamma: float = 0.05

    def search(
        self, model: nn.Module, x: Tensor, y: Tensor, budget: float, loss: Loss, samples: Samples
    ) -> Tensor:
        nearest = Nearest(x, self.norm)
        rows = torch.arange(len(x), device=x.device)
        widest = room(x, budget, self.norm)
        radius = torch.ones_like(widest) if self.norm == "l0" else torch.zeros_like(widest)
        moved = x
        for step in range(self.steps):
            losses, fooled, gradient = uphill(model, moved, y, loss, samples)
            nearest.offer(moved, fooled, rows)
            keep = nearest.distance[rows] > (1 if self.norm == "l0" else 0)
            if not bool(keep.all()):  # no image but x is nearer still
                samples, rows, moved = samples.select(keep), rows[keep], moved[keep]
                x, y, widest, radius = x[keep], y[keep], widest[keep], radius[keep]
                losses, fooled, gradient = losses[keep], fooled[keep], gradient[keep]
            if len(rows) == 0:
                return nearest.images
            size = nearest.distance[rows]
            gamma = annealed(self.gamma, LAST_GAMMA, step / self.steps)
            useful = gradient.masked_fill(_blocked(moved, gradient), 0)
            if self.norm == "l0":
                radius = _next_count(radius, fooled, size, gamma)
            else:
                reach = self._reach(moved - x, losses, useful)
                radius = _next_radius(radius, fooled, size, gamma, reach)
            radius = torch.minimum(radius, widest)
            if self.norm in ("l1", "l2"):  # elsewhere [0,1] cuts each value for itself
                gradient = torch.where(per_sample(size.isfinite(), x), gradient, useful)
            length = self.step_size * annealed(1.0, LAST_STEP, step / self.steps)
            moved = project(x, moved + length * steepest(gradient, "l2"), radius, self.norm)
        judge_last(model, moved, y, loss, samples, nearest, rows)
        return nearest.images

    def _reach(self, delta: Tensor, losses: Tensor, gradient: Tensor) -> Tensor:
        """The size at which a linear model would be fooled (equation 4), (B,)."""
        slope = THREATS[DUAL[self.norm]].size(gradient)
        distance = losses.abs() / slope.clamp_min(torch.finfo(slope.dtype).tiny)
        # An overflown gradient says nothing about the distance.
        blind = ~distance.isfinite() | (slope > torch.finfo(slope.dtype).max ** 0.5)
        return THREATS[self.norm].size(delta) + distance.masked_fill(blind, math.inf)


def annealed(first: float, last: float, progress: float) -> float:
    """Half a cosine from `first` at progress 0 to `last` at 1."""
    return last + (first - last) * (1 + math.cos(math.pi * progress)) / 2


def room(x: Tensor, budget: float, norm: str) -> Tensor:
    """The size (B,) beyond which no search need look: the unit cube's far corner, or the budget."""
    farthest = torch.maximum(x, 1 - x)
    limit = math.floor(budget) if norm == "l0" and math.isfinite(budget) else budget
    return THREATS[norm].size(farthest).clamp_max(limit)


def uphill(
    model: nn.Module, images: Tensor, y: Tensor, loss: Loss, samples: Samples
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses (B,), who is fooled (B,), and the finite gradient of the losses: one pass each."""
    images = images.detach().requires_grad_()
    losses, fooled = loss.judged(model, images, y)
    (gradient,) = torch.autograd.grad(losses.sum(), images)
    samples.book(forwards=1, backwards=1)
    return losses.detach(), fooled, gradient.nan_to_num()


def judge_last(
    model: nn.Module,
    images: Tensor,
    y: Tensor,
    loss: Loss,
    samples: Samples,
    nearest: Nearest,
    rows: Tensor,
) -> None:
    """Offer what the last step led to."""
    with torch.no_grad():
        _, fooled = loss.judged(model, images, y)
    samples.book(forwards=1)
    nearest.offer(images, fooled, rows)


def _blocked(images: Tensor, gradient: Tensor) -> Tensor:
    """Where [0,1] leaves no way up, bool (B,...)."""
    return torch.where(gradient > 0, images >= 1, images <= 0)


def _next_radius(
    radius: Tensor, fooled: Tensor, nearest: Tensor, gamma: float, reach: Tensor
) -> Tensor:
    """Inside the nearest image found, or outwards: to where the model looks like being fooled."""
    inwards = torch.minimum(radius * (1 - gamma), nearest)
    outwards = torch.where(nearest.isfinite(), radius * (1 + gamma), reach * (1 + LAST_GAMMA))
    return torch.where(fooled, inwards, outwards)


def _next_count(radius: Tensor, fooled: Tensor, nearest: Tensor, gamma: float) -> Tensor:
    """The same for l0: whole numbers that move by at least one, and never below one."""
    fewer = torch.minimum(radius - 1, (radius * (1 - gamma)).floor())
    more = torch.maximum(radius + 1, (radius * (1 + gamma)).floor())
    return torch.where(fooled, torch.minimum(fewer, nearest), more).clamp_min(1)
