"""APGD, untargeted and targeted (Croce & Hein 2020, arXiv 2003.01690; l1: 2021, arXiv 2103.01208).

Gradient ascent that sets its own step sizes: the number of steps is all there is to choose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ..core import Loss, Samples
from ..losses import LOSSES, TargetedLogitLoss
from .any_loss import AnyLoss
from .apgd_l1 import SparseSteps, project_l1, shrinking_radii
from .ascent import rivals
from .base import Attack
from .climb import Climbed, HalvingSteps, StepRule, climb
from .geometry import per_sample, project, steepest
from .threats import THREATS, Threat


@dataclass(frozen=True)
class AutoPGD(Attack):
    """What both share. A sample that stands costs steps + 1 forwards and steps backwards a run.

    A run begins at a random point at the rim of the ball (2020, section 4). `restarts` runs are
    made, each on the samples that those before it left standing. `rho` is the share of the steps
    that must raise the loss for a step size to be kept. Losses and gradients are means over
    `samples_per_gradient` passes, for models that answer at random. With `shrinking`, in l1 alone,
    a run spends its first 60% of steps in balls of 3 and 2 budgets (2021, section 3.3), where
    nobody leaves it early; that costs 2 more forwards. `parity` reviews step sizes with the quirks
    of the authors' code, see `HalvingSteps`.
    """

    norm: Literal["linf", "l2", "l1"] = "linf"
    steps: int = 100
    restarts: int = 1
    rho: float = 0.75
    samples_per_gradient: int = 1
    early_stop: bool = True
    shrinking: bool = True
    parity: bool = False

    @property
    def threat(self) -> Threat:
        return THREATS[self.norm]

    def perturb(
        self, model: nn.Module, x: Tensor, y: Tensor, budget: float, loss: Loss, samples: Samples
    ) -> Tensor:
        return self.search(model, x, y, budget, loss, samples).found

    def search(
        self, model: nn.Module, x: Tensor, y: Tensor, budget: float, loss: Loss, samples: Samples
    ) -> Climbed:
        """All runs, on a frozen model (`base.attacking`), and the best point and loss reached."""
        return self._in_turn([y] * self.restarts, model, x, budget, loss, samples)

    def run(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        budget: float,
        loss: Loss,
        samples: Samples,
        start: Tensor | None = None,
    ) -> Climbed:
        """One run on a frozen model, from images `start` (B,C,H,W) or else from a random point.

        Its best loss is at least that of the start, so that an ensemble may climb on from another
        attack's `Climbed.best`, and judge by `Climbed.loss` on whom more steps are worth spending.
        A start is first drawn into the budget, and is not given up for larger balls. y are the
        loss's labels: pairs (B,2) for a targeted one.
        """
        phases = [(budget, self.steps)]
        if self.norm == "l1" and self.shrinking and start is None:
            phases = shrinking_radii(budget, self.steps)
        warm = start is not None or len(phases) > 1
        reached = Climbed.nowhere(x)
        begin = random_start(x, phases[0][0], self.norm, samples) if start is None else start
        for turn, (radius, steps) in enumerate(phases, 1):
            begin = self._project(radius, x, begin)
            reached = climb(
                model,
                x,
                y,
                begin,
                loss,
                samples,
                self._rule(x, begin, radius, steps, warm),
                steps=steps,
                early_stop=self.early_stop and turn == len(phases),
                draws=self.samples_per_gradient,
            )
            begin = reached.best
        return reached

    def _project(self, radius: float, x: Tensor, adversarial: Tensor) -> Tensor:
        if self.norm == "l1":
            return project_l1(x, adversarial, radius)
        return project(x, adversarial, radius, self.norm)

    def _rule(self, x: Tensor, start: Tensor, radius: float, steps: int, warm: bool) -> StepRule:
        if self.norm == "l1":
            return SparseSteps(x, start, radius, steps=steps, warm=warm)
        along = partial(steepest, norm=self.norm)
        inside = partial(self._project, radius)
        return HalvingSteps(
            start, 2 * radius, along, inside, steps=steps, rho=self.rho, parity=self.parity
        )

    def _in_turn(
        self,
        goals: Sequence[Tensor],
        model: nn.Module,
        x: Tensor,
        budget: float,
        loss: Loss,
        samples: Samples,
    ) -> Climbed:
        """A run for each of `goals`, labels (B,) or (B,2), on the samples still standing.

        A sample that none fools keeps the point of the run that got its loss highest.
        """
        reached = Climbed.nowhere(x)
        standing = torch.arange(len(x), device=x.device)
        for y in goals:
            if len(standing) == 0:
                break
            one = self.run(model, x[standing], y[standing], budget, loss, samples.select(standing))
            better = one.fooled | (one.loss > reached.loss[standing])
            results = (one.found, one.best, one.loss, one.fooled)
            reached.put(standing[better], *(each[better] for each in results))
            standing = standing[~one.fooled]
        return reached


@dataclass(frozen=True)
class APGD(AnyLoss, AutoPGD):
    """Away from what is right, by whatever loss: the reference's are cross_entropy and dlr."""

    @property
    def compares(self) -> bool:
        return True


@dataclass(frozen=True)
class TargetedAPGD(AutoPGD):
    """Towards each of the `targets` likeliest wrong classes of the clean image, in turn.

    With K classes there are at most K - 1 targets. The loss is the targeted difference of logits
    ratio (2020, equation 7). One more forward is spent to rank the classes, and nothing else on an
    image that is wrong as it is.
    """

    usual_loss: ClassVar[str] = "dlr_targeted"

    targets: int = 9

    def search(
        self, model: nn.Module, x: Tensor, y: Tensor, budget: float, loss: Loss, samples: Samples
    ) -> Climbed:
        # A loss that knows no target, as a caller may hand to any attack, cannot be raised here.
        aim = loss if isinstance(loss, TargetedLogitLoss) else LOSSES[self.loss_name]
        logits, ranked = rivals(model, x, y, samples)
        wrong = logits.argmax(1) != y
        goals = [
            torch.stack((y, target), 1)
            for target in ranked[:, : self.targets].unbind(1)
            for _ in range(self.restarts)
        ]
        reached, right = Climbed.nowhere(x), (~wrong).nonzero().squeeze(1)
        reached.fooled[wrong] = True
        there = [goal[right] for goal in goals]
        one = self._in_turn(there, model, x[right], budget, aim, samples.select(right))
        reached.put(right, one.found, one.best, one.loss, one.fooled)
        return reached


def random_start(x: Tensor, radius: float, norm: str, samples: Samples) -> Tensor:
    """Images moved to a random point at the rim of the ball, in l1 to be projected onto it.

    Uniform noise scaled to the radius in linf, a uniform direction in l2, normal noise in l1.
    """
    if norm == "linf":
        noise = samples.uniform(x)
        largest = noise.abs().flatten(1).amax(1).clamp_min(1e-12)
        return x + radius * noise / per_sample(largest, x)
    noise = samples.normal(x)
    return x + (noise if norm == "l1" else radius * steepest(noise, norm))
