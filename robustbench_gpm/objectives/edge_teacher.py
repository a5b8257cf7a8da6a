"""What edge regularisation teaches: where the edges of an image are."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..core import UserError

REACH = 4  # pixels, at which the Gaussian of deviation 1 is cut off; 6e-5 of it lies beyond
_WEIGHTS = [math.exp(-0.5 * k * k) for k in range(REACH + 1)]
GAUSSIAN = [weight / (2 * sum(_WEIGHTS) - _WEIGHTS[0]) for weight in _WEIGHTS]  # from its middle


@torch.no_grad()
def edge_map(x: Tensor) -> Tensor:
    """The blurred strength of the edges of blurred images x (B,C,H,W): shape (B,1,H,W), >= 0.

    blur(sqrt(sum_c right_c^2 + down_c^2)), the two derivatives of blur(x) by the 3x3 kernels
    x/(x^2+y^2) and y/(x^2+y^2), the blur a Gaussian of deviation 1 pixel (Rodriguez-Munoz et al.,
    ECCV 2024, arXiv 2409.20139). Beyond the edge the image is mirrored about the centre of its last
    pixel (torch's `reflect`, scipy's `mirror`). An image without contrast has edges of exactly 0.

    Sums of shifted images rather than convolutions: these would be rounded to ten bits (TF32) on
    the GPUs that do so by themselves. Raises UserError for images of less than 5 pixels.
    """
    if min(x.shape[2:]) <= REACH:
        raise UserError(
            f"edge regularisation needs images of at least {REACH + 1} pixels on either side, and "
            f"these have {x.shape[2]} x {x.shape[3]}: train without --edge_lamb"
        )
    right, down = _derivatives(_blurred(x))
    return _blurred((right.square() + down.square()).sum(1, keepdim=True).sqrt())


def _blurred(x: Tensor) -> Tensor:
    padded = _mirrored(x, REACH)
    return _blurred_along(_blurred_along(padded, -2), -1)


def _blurred_along(padded: Tensor, dim: int) -> Tensor:
    """The Gaussian along one dimension, which the result has REACH places less of at each end."""
    size = padded.shape[dim] - 2 * REACH
    total = GAUSSIAN[0] * padded.narrow(dim, REACH, size)
    for k in range(1, REACH + 1):
        pair = padded.narrow(dim, REACH - k, size) + padded.narrow(dim, REACH + k, size)
        total = total + GAUSSIAN[k] * pair
    return total


def _derivatives(x: Tensor) -> tuple[Tensor, Tensor]:
    """To the right and down, by x/(x^2+y^2): 1 beside the middle, 1/2 at the corners."""
    padded = _mirrored(x, 1)
    right = padded[..., 2:] - padded[..., :-2]
    down = padded[..., 2:, :] - padded[..., :-2, :]
    return (
        right[..., 1:-1, :] + (right[..., :-2, :] + right[..., 2:, :]) / 2,
        down[..., 1:-1] + (down[..., :-2] + down[..., 2:]) / 2,
    )


def _mirrored(x: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(x, (width,) * 4, mode="reflect")
