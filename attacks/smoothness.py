"""The smoothness of a flow (Xiao et al. 2018, arXiv 1801.02612, equation 4), and its price."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

from .perturbed import Perturbed
from .threats import FLOW

Neighbours = Literal["axial", "diagonal"]
Over = Literal["bound", "tau"]  # what a budget is: the largest move in pixels, or 1/tau

_ROUND = 1e-8  # under the square root, in pixels^2, so that equal neighbours have a gradient


def smoothness(flow: Tensor, neighbours: Neighbours) -> Tensor:
    """How much neighbouring pixels of each flow (B,2,H,W) move apart, in pixels: shape (B,), >= 0.

    The sum over all pixels p and the neighbours q of each of sqrt(|du|^2 + |dv|^2 + 1e-8), the
    differences of the two displacements: every pair counts twice, once from either end. Neighbours
    lie above, below, left and right (`axial`), or at the four corners (`diagonal`, as in the
    authors' code); beyond the edge of the image there are none.
    """
    if neighbours == "axial":
        pairs = ((flow[..., 1:, :], flow[..., :-1, :]), (flow[..., 1:], flow[..., :-1]))
    else:
        pairs = (
            (flow[..., 1:, 1:], flow[..., :-1, :-1]),
            (flow[..., 1:, :-1], flow[..., :-1, 1:]),
        )
    return _apart(*pairs[0]) + _apart(*pairs[1])


def terms(over: Over, budget: float, tau: float) -> tuple[float, float]:
    """The bound on a flow in pixels, and the price of its smoothness, that a budget stands for."""
    return (budget, tau) if over == "bound" else (math.inf, 1 / budget)


def size_over(over: Over, found: Perturbed) -> Tensor:
    """The sizes (B,) of flows: what they move, or nothing where the budget bounds no flow."""
    return FLOW.size(found.flow) * (over == "bound")


def _apart(one: Tensor, other: Tensor) -> Tensor:
    """Twice the sum of the lengths of the differences of two flows (B,2,H,W), shape (B,)."""
    squares = (one - other).square().sum(1)
    return 2 * (squares + _ROUND).sqrt().flatten(1).sum(1)
