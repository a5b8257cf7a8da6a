"""Transformations tried one by one, the smallest first: worst-case grids and random draws.

Engstrom et al. 2019, "Exploring the landscape of spatial robustness" (arXiv 1712.02779, section 3).
How far a candidate moves the pixels is known before it is tried. So in ascending order the first
that fools is the nearest of all, a sample leaves there, and one search serves every budget.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..core import Loss, Samples, UserError
from ..deformation import identity_flow
from .base import FlowAttack
from .geometry import Radius
from .transforms import Family, Rigid, Scale, ladder

IMAGES = 256  # about how many a forward pass takes
AHEAD = 8  # a look at n candidates at once comes after 8 n are tried: at most an eighth in vain
ROUNDING = 1e-9  # sizes this near count as equal


@dataclass(frozen=True)
class Exhaustive(FlowAttack):
    """Tries the image itself, then every candidate that lies inside the budget.

    What a sample costs is decided by itself alone: the candidates up to the one that fools it, and
    up to an eighth more, since several are tried at once. Nothing else depends on how many are.
    """

    minimum_norm: ClassVar[bool] = True

    @property
    @abstractmethod
    def family(self) -> Family:
        """What the candidates are parameters of."""

    @abstractmethod
    def candidates(self, samples: Samples) -> Tensor:
        """Parameters (1,n,k) that all samples share, or (B,n,k), in float64, in any order."""

    @property
    def unbounded(self) -> bool:
        return True

    def default_budgets(self, height: int, width: int) -> tuple[float, ...]:
        return ladder(self.family.largest(height, width))

    def smaller(self, flow: Tensor, budgets: Radius) -> Tensor:
        return self.family.smaller(flow, budgets)

    def deform(
        self, model: nn.Module, x: Tensor, y: Tensor, budget: float, loss: Loss, samples: Samples
    ) -> Tensor:
        height, width = x.shape[2:]
        points, sizes = self._ordered(samples, height, width)
        inside = (sizes <= budget * (1 + ROUNDING)).sum(1).expand(len(x))
        found, tried = identity_flow(x), 0
        standing = torch.arange(len(x))
        while bool((left := inside[standing] > tried).any()):
            standing = standing[left]
            ranks = torch.arange(tried, min(tried + max(1, tried // AHEAD), points.shape[1]))
            part = (points if len(points) == 1 else points[standing])[:, ranks]
            here = standing.to(x.device)
            hits = self._fooled(model, x[here], y[here], part, loss, samples.select(standing))
            hits &= ranks < inside[standing, None]
            hit, first = hits.any(1), hits.int().argmax(1)
            chosen = part.expand(len(here), -1, -1)[hit, first[hit]].to(x.device)
            found[here[hit.to(x.device)]] = self.family.flow(chosen, height, width).to(found)
            standing, tried = standing[~hit], tried + len(ranks)
        return found

    def _fooled(
        self, model: nn.Module, x: Tensor, y: Tensor, points: Tensor, loss: Loss, samples: Samples
    ) -> Tensor:
        """Which of the candidates (1|B,m,k) fool, (B,m) bool on the CPU."""
        verdicts = []
        for part in torch.split(points, max(1, IMAGES // len(x)), dim=1):
            number = part.shape[1]
            with torch.no_grad():
                images = self._views(x, part.to(x.device)).clamp(0, 1)
                _, fooled = loss.judged(model, images, torch.cat([y] * number))
            samples.book(forwards=number)
            verdicts.append(fooled.view(number, len(x)))
        return torch.cat(verdicts).T.cpu()

    def _views(self, x: Tensor, points: Tensor) -> Tensor:
        """Every image under each of the candidates (1|B,m,k): (m*B,C,H,W), by candidates."""
        flow = self.family.flow(points.transpose(0, 1).flatten(0, 1), *x.shape[2:]).to(x)
        number = points.shape[1]
        if len(points) > 1:
            return self.render(x.repeat(number, 1, 1, 1), flow)
        # The same flow for all: their channels are warped as those of one image.
        merged = x.flatten(0, 1).expand(number, -1, -1, -1)
        return self.render(merged, flow).view(-1, *x.shape[1:])

    def _ordered(self, samples: Samples, height: int, width: int) -> tuple[Tensor, Tensor]:
        """No move and the candidates (1|B,n,k) in ascending order, and their sizes (1|B,n)."""
        points = self.candidates(samples)
        points = torch.cat((torch.zeros_like(points[:, :1]), points), dim=1)
        sizes = self.family.size(points.flatten(0, 1), height, width).view(points.shape[:2])
        order = (sizes / ROUNDING).round().argsort(dim=1, stable=True)
        return points.gather(1, order[..., None].expand_as(points)), sizes.gather(1, order)


def grid(*counts: int) -> Tensor:
    """A regular grid of [-1,1]^k, of so many points along each axis: (1,n,k) in float64.

    An axis of one point has it at zero. All at zero is left out: it is tried in any case.
    """
    axes = [torch.linspace(-1, 1, count, dtype=torch.float64) for count in counts]
    points = torch.cartesian_prod(*(axis if len(axis) > 1 else 0 * axis for axis in axes))
    points = points.view(-1, len(counts))
    return points[(points.abs() > ROUNDING).any(1)][None]


@dataclass(frozen=True)
class RigidSearch(Exhaustive):
    """Shifts of up to `translation` of the width and height, turns of up to `rotation` degrees.

    A tenth is about what Engstrom et al. allow, 3 px of CIFAR's 32 and 24 of ImageNet's 224; 3 / 32
    is whole pixels.
    """

    translation: float = 0.1
    rotation: float = 30.0

    @property
    def family(self) -> Family:
        return Rigid(self.translation, self.rotation)


@dataclass(frozen=True)
class RotateTranslate(RigidSearch):
    """The grid of `translations` x `translations` shifts and `rotations` turns (section 3)."""

    translations: int = 5
    rotations: int = 31

    def candidates(self, samples: Samples) -> Tensor:  # noqa: ARG002
        return grid(self.translations, self.translations, self.rotations)


@dataclass(frozen=True)
class RotateTranslateRandom(RigidSearch):
    """The worst of `draws` points uniform in the box: the paper's worst-of-10 (section 3)."""

    draws: int = 10

    def candidates(self, samples: Samples) -> Tensor:
        blank = torch.zeros(len(samples), self.draws, self.family.count, dtype=torch.float64)
        return samples.uniform(blank)


@dataclass(frozen=True)
class Zoom(Exhaustive):
    """`zooms` magnifications about the centre, from `least` to `most`, even in their logarithms."""

    least: float = 0.7
    most: float = 1.4
    zooms: int = 31

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.least <= 1 <= self.most:
            raise UserError(
                f"Zoom: 1 must lie between least and most, both above 0, not {self.least} and "
                f"{self.most}"
            )

    @property
    def family(self) -> Family:
        return Scale(self.least, self.most)

    def candidates(self, samples: Samples) -> Tensor:  # noqa: ARG002
        return grid(self.zooms)
