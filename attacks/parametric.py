"""Gradient ascent on the few parameters of a deformation, inside a budget in pixels.

For rigid motions this is the first-order attack of Engstrom et al. 2019 (arXiv 1712.02779, section
3), which found it to fool fewer samples than a grid: the loss has many local maxima.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ..core import Loss, Samples, UserError
from .any_loss import AnyLoss
from .base import FlowAttack
from .climb import Climbed, HalvingSteps, climb
from .geometry import Radius
from .splines import ThinPlate
from .transforms import TINY, Affine, Family, Rigid, ladder, smooth_ladder

FIRST = 2.0  # the first step, in budgets: across the ball, as in APGD


class Room:
    """The parameters of a family whose flows of one image size lie inside a budget.

    A point (B,k) holds for each parameter its move: the size in pixels, with a sign, of the flow
    that it makes alone. So all parameters are of like importance to a step.
    """

    def __init__(self, family: Family, budget: float, height: int, width: int) -> None:
        self.family, self.budget, self.shape = family, budget, (height, width)
        alone = torch.eye(family.count, dtype=torch.float64)
        alone = alone * family.share(alone, budget, height, width)[:, None]
        self.most = family.size(alone, height, width)  # at the end of the box, or of the budget
        self.unit = alone.diagonal() / self.most.clamp_min(TINY)  # parameters per pixel

    def flow(self, point: Tensor) -> Tensor:
        """The flows (B,2,H,W) of points (B,k)."""
        return self.family.flow(self._parameters(point), *self.shape).to(point)

    def nearest(self, point: Tensor) -> Tensor:
        """The nearest points inside, to first order, and drawn towards rest by what that misses."""
        most = self.most.to(point)
        point = self.family.together(torch.maximum(torch.minimum(point, most), -most), self.budget)
        share = self.family.share(self._parameters(point), self.budget, *self.shape)
        return point * share[:, None].to(point)

    def random(self, like: Tensor, samples: Samples) -> Tensor:
        """Points shaped as `like` (B,k), uniform in the box and then drawn inside."""
        return self.nearest(self.most.to(like) * samples.uniform(like))

    def _parameters(self, point: Tensor) -> Tensor:
        return point.double() * self.unit.to(point.device)


@dataclass(frozen=True)
class FirstOrder(AnyLoss, FlowAttack):
    """Runs of APGD's ascent over the parameters of a family, on those that none has fooled yet.

    The first run starts at rest, further ones at random parameters; a sample that none fools keeps
    the point of highest loss. A run costs at most steps + 1 forwards and steps backwards.
    """

    steps: int = 20
    restarts: int = 2
    early_stop: bool = True

    @property
    def compares(self) -> bool:
        return True

    @abstractmethod
    def family(self, budget: float) -> Family:
        """The flows to search; where they have no box of their own, one as wide as the budget."""

    def default_budgets(self, height: int, width: int) -> tuple[float, ...]:
        return smooth_ladder(height, width)

    def smaller(self, flow: Tensor, budgets: Radius) -> Tensor:
        return self.family(1.0).smaller(flow, budgets)

    def deform(
        self, model: nn.Module, x: Tensor, y: Tensor, budget: float, loss: Loss, samples: Samples
    ) -> Tensor:
        family = self.family(budget)
        room = Room(family, budget, *x.shape[2:])
        reached = Climbed.nowhere(x.new_zeros(len(x), family.count))
        standing = torch.arange(len(x), device=x.device)
        for turn in range(self.restarts):
            if len(standing) == 0:
                break
            part = samples.select(standing)
            start = x.new_zeros(len(standing), family.count)
            start = room.random(start, part) if turn > 0 else start
            one = self._climb(model, x[standing], y[standing], start, room, loss, part)
            better = one.fooled | (one.loss > reached.loss[standing])
            results = (one.found, one.best, one.loss, one.fooled)
            reached.put(standing[better], *(each[better] for each in results))
            standing = standing[~one.fooled]
        return room.flow(reached.found)

    def _climb(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        start: Tensor,
        room: Room,
        loss: Loss,
        samples: Samples,
    ) -> Climbed:
        """One run from `start` (B,k)."""
        rule = HalvingSteps(
            start, FIRST * room.budget, _direction, lambda _, p: room.nearest(p), steps=self.steps
        )
        return climb(
            model,
            x,
            y,
            start,
            loss,
            samples,
            rule,
            steps=self.steps,
            early_stop=self.early_stop,
            render=lambda x, p: self._shown(x, room.flow(p)),
        )

    def _shown(self, x: Tensor, flow: Tensor) -> Tensor:
        """The warped images; where their gradient overflows, a pixel says nothing.

        Every parameter moves every pixel, and so one NaN would be all that a gradient says.
        """
        images = self.render(x, flow)
        if images.requires_grad:
            clean = partial(torch.nan_to_num, posinf=0.0, neginf=0.0)
            images.register_hook(clean)  # type: ignore[no-untyped-call]
        return images


def _direction(gradient: Tensor) -> Tensor:
    """The gradient (B,k) with its largest entry made 1."""
    return gradient / gradient.abs().amax(1, keepdim=True).clamp_min(
        torch.finfo(gradient.dtype).tiny
    )


@dataclass(frozen=True)
class RigidAscent(FirstOrder):
    """Shifts of up to `translation` of the width and height, turns of up to `rotation` degrees."""

    translation: float = 0.1
    rotation: float = 30.0

    def family(self, budget: float) -> Family:  # noqa: ARG002
        return Rigid(self.translation, self.rotation)

    def default_budgets(self, height: int, width: int) -> tuple[float, ...]:
        return ladder(self.family(1.0).largest(height, width))


@dataclass(frozen=True)
class AffineAscent(FirstOrder):
    """Affine maps: shift, turn, zoom, stretch and shear, bounded by the budget alone."""

    def family(self, budget: float) -> Family:
        return Affine(budget)


@dataclass(frozen=True)
class SplineAscent(FirstOrder):
    """Thin-plate splines through the moves of a grid of points x points control points."""

    points: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.points < 2:
            raise UserError(f"{type(self).__name__}: points must be at least 2, not {self.points}")

    def family(self, budget: float) -> Family:
        return ThinPlate(self.points, budget)
