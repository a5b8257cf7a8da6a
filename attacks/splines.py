"""Thin-plate splines: smooth flows through the moves of a few control points (Bookstein 1989)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from ..deformation import max_displacement
from .transforms import TINY, Family, places


@dataclass(frozen=True)
class ThinPlate(Family):
    """Thin-plate splines through the moves of points x points control points (Bookstein 1989).

    The control points form a regular grid from corner to corner. Parameters: their moves to the
    right, row by row, then their moves down, in units of `reach` pixels. `points` is at least 2.
    """

    points: int = 4
    reach: float = 1.0

    linear: ClassVar[bool] = True

    @property
    def count(self) -> int:
        return 2 * self.points**2

    def flow(self, parameters: Tensor, height: int, width: int) -> Tensor:
        basis = spline_basis(self.points, height, width, parameters.device).to(parameters)
        moves = self.reach * parameters.view(-1, 2, self.points**2)
        return (moves @ basis.T).view(-1, 2, height, width)

    def size(self, parameters: Tensor, height: int, width: int) -> Tensor:
        return max_displacement(self.flow(parameters, height, width))


@lru_cache(maxsize=8)
def spline_basis(points: int, height: int, width: int, device: torch.device) -> Tensor:
    """What each pixel (row by row) takes of each control point's move: (H*W, points^2), float64.

    The spline is sum_k w_k U(|q - c_k|) + an affine map, U(r) = r^2 log r, with weights w that are
    orthogonal to all affine maps.
    """
    unit = max(height, width) / 2  # lengths near 1 keep the system well conditioned
    zero = torch.zeros((), dtype=torch.float64)
    right, down = (each / unit for each in places(height, width, zero))
    pixels = torch.cartesian_prod(down[:, 0], right).flip(1)
    rows, columns = (
        end * torch.linspace(-1, 1, points, dtype=torch.float64) for end in -pixels[0].flip(0)
    )
    control = torch.cartesian_prod(rows, columns).flip(1)
    number = points**2
    system = torch.zeros(number + 3, number + 3, dtype=torch.float64)
    system[:number] = _terms(control, control)
    system[number:, :number] = system[:number, number:].T
    given = torch.eye(number + 3, number, dtype=torch.float64)
    basis: Tensor = _terms(pixels, control) @ torch.linalg.solve(system, given)
    return basis.to(device)


def _terms(at: Tensor, control: Tensor) -> Tensor:
    """The terms of a spline at places (n,2): one for each control point (m,2), 1, right, down."""
    squares = (at[:, None] - control).square().sum(2)
    bumps = squares * squares.clamp_min(TINY).log() / 2
    return torch.cat((bumps, torch.ones_like(at[:, :1]), at), dim=1)
