"""Families of deformations with a few parameters: rigid motions, zooms, affine maps.

A family turns parameters (B,k) into flows (B,2,H,W) in pixels: an output pixel q is read at
q + flow(q). Its parameters are scaled so that their natural box is [-1,1]^k, and zero moves
nothing. Places are measured in pixels from the image's centre, ((W-1)/2, (H-1)/2). All is
differentiable in the parameters, and of their type; computed in float64, a quarter turn is exact in
float32.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from decimal import Decimal
from typing import ClassVar

import torch
from torch import Tensor

from ..deformation import max_displacement
from .geometry import Radius, per_sample, shrink

TINY = 1e-30
HALVINGS = 50  # of an interval of length 1, to float64's precision
SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)  # of the largest budget of a curve
SMOOTH = 0.2  # the largest default budget of smooth deformations, as a share of the longer side


class Family(ABC):
    """Flows by parameters."""

    linear: ClassVar[bool] = False  # the flow is linear in the parameters

    @property
    @abstractmethod
    def count(self) -> int:
        """How many parameters a flow has, k."""

    @abstractmethod
    def flow(self, parameters: Tensor, height: int, width: int) -> Tensor:
        """The flows (B,2,H,W), in pixels, of parameters (B,k)."""

    @abstractmethod
    def size(self, parameters: Tensor, height: int, width: int) -> Tensor:
        """The largest move along an axis (B,) of each flow, in pixels."""

    def share(self, parameters: Tensor, budgets: Radius, height: int, width: int) -> Tensor:
        """The largest share (B,), at most 1, of parameters (B,k) that fits into the budgets."""
        limit = _limits(budgets, parameters)
        size = self.size(parameters, height, width)
        least, most = torch.zeros_like(size), torch.ones_like(size)
        if bool((size <= limit).all()):
            return most
        if self.linear:
            return (limit / size.clamp_min(TINY)).clamp_max(1)
        for _ in range(HALVINGS):
            middle = (least + most) / 2
            fits = self.size(middle[:, None] * parameters, height, width) <= limit
            least, most = torch.where(fits, middle, least), torch.where(fits, most, middle)
        return torch.where(size <= limit, 1.0, least)

    def largest(self, height: int, width: int) -> float:
        """The largest size in the box, met where all parameters grow alike."""
        ray = torch.linspace(-1, 1, 181, dtype=torch.float64)[:, None]  # a half turn by degrees
        return float(self.size(ray.expand(-1, self.count), height, width).max())

    def together(self, moves: Tensor, budget: float) -> Tensor:
        """The nearest moves (B,k) that add up to at most the budget wherever they act together.

        A parameter's move is the size, in pixels and with a sign, of the flow that it makes alone,
        taken to be linear in it.
        """
        return moves.clamp(-budget, budget)

    def smaller(self, flow: Tensor, budgets: Radius) -> Tensor:
        """Flows (B,2,H,W) of the family drawn into the budgets, and still of the family.

        They are scaled, which leaves the flows of every family but the rigid one of their kind.
        """
        return scaled(flow, budgets)


class AffineFamily(Family):
    """Flows that are affine in the place: a shift in pixels and a matrix times the place."""

    @abstractmethod
    def maps(self, parameters: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """The shifts (B,2) and the matrices (B,2,2), by rows: what moves right, what moves down."""

    def flow(self, parameters: Tensor, height: int, width: int) -> Tensor:
        shift, matrix = self.maps(parameters, height, width)
        right, down = places(height, width, parameters)
        across, along = matrix[..., None, None].unbind(2)
        return shift[..., None, None] + across * right + along * down

    def size(self, parameters: Tensor, height: int, width: int) -> Tensor:
        # At one of the corners all terms have the same sign.
        shift, matrix = self.maps(parameters, height, width)
        corner = torch.tensor([(width - 1) / 2, (height - 1) / 2]).to(parameters)
        return (shift.abs() + (matrix.abs() * corner).sum(2)).amax(1)


@dataclass(frozen=True)
class Rigid(AffineFamily):
    """Shifted by up to `translation` of the width and height, turned by up to `rotation` degrees.

    Parameters: right, down, angle; q is read at q turned from the x axis towards the y axis, which
    shows the image turned the other way.
    """

    translation: float = 0.1
    rotation: float = 30.0

    @property
    def count(self) -> int:
        return 3

    def maps(self, parameters: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        angle = parameters[:, 2] * math.radians(self.rotation)
        sine, less = angle.sin(), angle.cos() - 1
        matrix = torch.stack((less, -sine, sine, less), dim=1).view(-1, 2, 2)
        return parameters[:, :2] * self._reach(height, width, parameters), matrix

    def recovered(self, flow: Tensor) -> Tensor:
        """The parameters (B,3), in float64, of flows (B,2,H,W) of this family."""
        height, width = flow.shape[2:]
        flow = flow.double()
        right, down = places(height, width, flow)
        inertia = max(float((right**2 + down**2).sum()), TINY)
        sine = (flow[:, 1] * right - flow[:, 0] * down).sum((1, 2)) / inertia
        cosine = 1 + (flow[:, 0] * right + flow[:, 1] * down).sum((1, 2)) / inertia
        angle = torch.atan2(sine, cosine) / max(math.radians(self.rotation), TINY)
        shift = flow.mean((2, 3)) / self._reach(height, width, flow).clamp_min(TINY)
        return torch.cat((shift, angle[:, None]), dim=1)

    def smaller(self, flow: Tensor, budgets: Radius) -> Tensor:
        height, width = flow.shape[2:]
        p = self.recovered(flow)
        drawn = self.share(p, budgets, height, width)[:, None] * p
        fits = max_displacement(flow) <= _limits(budgets, flow)
        return torch.where(per_sample(fits, flow), flow, self.flow(drawn, height, width).to(flow))

    def together(self, moves: Tensor, budget: float) -> Tensor:
        # Shifts are cut at m and the turn at budget - m. The distance to where they were is least
        # where the turn loses as much as the shifts that are cut, be they none, one or both.
        shifts, turn = moves[:, :2], moves[:, 2]
        room = budget - turn.abs()
        both = shifts.abs().sum(1)
        most = shifts.abs().amax(1)
        m = torch.stack((room, (room + most) / 2, (room + both) / 3)).amax(0).clamp(0, budget)
        cut = torch.stack((m, m, budget - m), dim=1)
        return torch.maximum(torch.minimum(moves, cut), -cut)

    def _reach(self, height: int, width: int, like: Tensor) -> Tensor:
        return self.translation * torch.tensor([width, height]).to(like)


@dataclass(frozen=True)
class Scale(AffineFamily):
    """The image enlarged about its centre by `least` ** -p for p < 0 and `most` ** p for p > 0."""

    least: float = 0.7
    most: float = 1.4

    @property
    def count(self) -> int:
        return 1

    def maps(self, parameters: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        p = parameters[:, 0]
        steepness = torch.where(p < 0, -math.log(self.least), math.log(self.most))
        stretch = torch.expm1(-steepness * p)[:, None, None]
        return torch.zeros_like(stretch[:, :, 0].expand(-1, 2)), stretch * torch.eye(2).to(stretch)


@dataclass(frozen=True)
class Affine(AffineFamily):
    """Each axis's move is reach * (p0 + p1 xi + p2 eta); xi and eta go from -1 to 1 over the image.

    Parameters: the three of the moves to the right, then those of the moves down. `reach` is in
    pixels.
    """

    reach: float = 1.0

    linear: ClassVar[bool] = True

    @property
    def count(self) -> int:
        return 6

    def maps(self, parameters: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        moves = self.reach * parameters.view(-1, 2, 3)
        corner = torch.tensor([(width - 1) / 2, (height - 1) / 2]).to(parameters)
        return moves[..., 0], moves[..., 1:] / corner.clamp_min(0.5)

    def together(self, moves: Tensor, budget: float) -> Tensor:
        return shrink(moves.view(-1, 3), budget, "l1").view_as(
            moves
        )  # at a corner all three add up


def places(height: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """How far pixels lie right of (W,) and below (H,1) the centre; typed as `like`."""
    right = torch.arange(width).to(like) - (width - 1) / 2
    down = torch.arange(height).to(like) - (height - 1) / 2
    return right, down[:, None]


def scaled(flow: Tensor, budgets: Radius) -> Tensor:
    """Flows (B,2,H,W) scaled down as a whole where they are beyond a budget, or one each (B,)."""
    size = max_displacement(flow)
    share = _limits(budgets, size) / size.clamp_min(TINY)
    return flow * per_sample(share.clamp_max(1), flow)


def ladder(largest: float) -> tuple[float, ...]:
    """Six budgets up to `largest`, each rounded up to three digits."""
    return tuple(_rounded_up(share * max(largest, TINY)) for share in SHARES)


def smooth_ladder(height: int, width: int) -> tuple[float, ...]:
    """Budgets for deformations without a box: they move much further than rough flows to fool."""
    return ladder(SMOOTH * max(height, width))


def _rounded_up(value: float) -> float:
    unit = Decimal(10) ** (math.floor(math.log10(value)) - 2)
    return float(unit * math.ceil(value * (1 - 1e-9) / float(unit)))


def _limits(budgets: Radius, like: Tensor) -> Tensor:
    return torch.as_tensor(budgets, dtype=like.dtype, device=like.device)
