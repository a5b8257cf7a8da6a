"""The smoothness of a flow (Xiao et al. 2018, arXiv 1801.02612, equation 4)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

Neighbours = Literal["axial", "diagonal"]

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


def _apart(one: Tensor, other: Tensor) -> Tensor:
    """Twice the sum of the lengths of the differences of two flows (B,2,H,W), shape (B,)."""
    squares = (one - other).square().sum(1)
    return 2 * (squares + _ROUND).sqrt().flatten(1).sum(1)
