"""Carlini and Wagner's l2 attack (2017, arXiv 1608.04644, section VI.A)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ..core import Loss, Samples
from .minimum_norm import MinimumNormAttack, Nearest

EDGE = 1 - 1e-6  # how much of [-1,1] the tanh's argument can reach
CHECKS = 10  # how often in a search a sample may leave for want of progress
LARGEST = 1e10  # constant
PROGRESS = 0.9999  # of the value at the check before
BETAS, TINY = (0.9, 0.999), 1e-8  # Adam's


@dataclass(frozen=True)
class CarliniWagner(MinimumNormAttack):
    """Adam on |delta|^2 + c * max(confidence - margin, 0), where images are (tanh(w) + 1) / 2.

    The constant c is searched for, for each sample: from `initial_constant`, ten times larger until
    a search of `steps` steps succeeds, then halfway between the largest that failed and the
    smallest that succeeded; `search_steps` searches in all. A search succeeds where it fools the
    model with a margin of at least `confidence`. A sample leaves a search as soon as a tenth of the
    steps has not lowered the least value of its objective by 0.01%. A budget changes nothing: c,
    not a ball, decides how far the search goes.
    """

    usual_loss: ClassVar[str] = "margin"

    norm: Literal["l2"] = "l2"
    steps: int = 200
    search_steps: int = 9
    learning_rate: float = 0.01
    confidence: float = 0.0
    initial_constant: float = 1e-2

    def search(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        budget: float,  # noqa: ARG002
        loss: Loss,
        samples: Samples,
    ) -> Tensor:
        nearest = Nearest(x, self.norm)
        with torch.no_grad():
            losses, fooled = loss.judged(model, x, y)
        samples.book(forwards=1)
        nearest.offer(x, self._succeeds(losses, fooled))
        rows = torch.nonzero(nearest.distance > 0).squeeze(1)
        samples, y = samples.select(rows), y[rows]
        constant = torch.full_like(nearest.distance[rows], self.initial_constant)
        lower, upper = torch.zeros_like(constant), torch.full_like(constant, math.inf)
        for _ in range(self.search_steps if len(rows) else 0):
            found = self._descend(model, y, constant, loss, samples, nearest, rows)
            upper = torch.where(found, constant, upper)
            lower = torch.where(found, lower, constant)
            halfway = (lower + upper) / 2
            constant = torch.where(upper.isfinite(), halfway, (10 * constant).clamp_max(LARGEST))
        return nearest.images

    def _descend(
        self,
        model: nn.Module,
        y: Tensor,
        constant: Tensor,
        loss: Loss,
        samples: Samples,
        nearest: Nearest,
        rows: Tensor,
    ) -> Tensor:
        """One search from x with the constants (B,); which samples it fooled, (B,) bool."""
        found = torch.zeros_like(constant, dtype=torch.bool)
        active = torch.arange(len(rows), device=rows.device)
        x = nearest.x[rows]
        w, adam = torch.atanh((2 * x - 1) * EDGE), _Adam(x)
        before = lowest = torch.full_like(constant, math.inf)
        interval = math.ceil(self.steps / CHECKS)
        for step in range(self.steps):
            w = w.detach().requires_grad_()
            images = (torch.tanh(w) + 1) / 2
            losses, fooled = loss.judged(model, images, y[active])
            distance = (images - x).square().flatten(1).sum(1)
            total = distance + constant[active] * (self.confidence - losses).clamp_min(0)
            (gradient,) = torch.autograd.grad(total.sum(), w)
            samples.book(forwards=1, backwards=1)
            success = self._succeeds(losses.detach(), fooled)
            nearest.offer(images.detach(), success, rows[active])
            found[active[success]] = True
            w = w.detach() - self.learning_rate * adam.step(gradient.nan_to_num())
            lowest = torch.minimum(lowest, total.detach())
            if step % interval == 0:
                keep = lowest <= PROGRESS * before
                samples, active, lowest = samples.select(keep), active[keep], lowest[keep]
                x, w, before = x[keep], w[keep], lowest
                adam.select(keep)
                if len(active) == 0:
                    break
        return found

    def _succeeds(self, losses: Tensor, fooled: Tensor) -> Tensor:
        return fooled & (losses >= self.confidence)


class _Adam:
    """Adam (Kingma & Ba 2015, algorithm 1), of rows that may leave."""

    def __init__(self, like: Tensor) -> None:
        self._mean, self._square = torch.zeros_like(like), torch.zeros_like(like)
        self._count = 0

    def step(self, gradient: Tensor) -> Tensor:
        """The step to take downwards, to be multiplied by the learning rate."""
        self._count += 1
        first, second = BETAS
        self._mean = first * self._mean + (1 - first) * gradient
        self._square = second * self._square + (1 - second) * gradient.square()
        mean = self._mean / (1 - first**self._count)
        return mean / ((self._square / (1 - second**self._count)).sqrt() + TINY)

    def select(self, keep: Tensor) -> None:
        """Forget the rows that `keep` (B,) does not keep."""
        self._mean, self._square = self._mean[keep], self._square[keep]
