"""Deformations: flows in pixels, and a bilinear warp that is differentiable twice.

A flow (B,2,H,W) moves the place each output pixel is read from: `flow[:, 0]` to the right,
`flow[:, 1]` downwards, both in pixels, so that a flow means the same at every image size.

Bilinear interpolation has a kink at every pixel centre. There, and only there, the warp's
derivative with respect to the flow is the mean of its two one-sided derivatives, which is the
central difference of the image: no direction is preferred, and a deformation of an undeformed image
has a useful gradient.
"""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor

from .core import UserError
from .warping import Padding, Warp, onto_flow

__all__ = [
    "Padding",
    "identity_flow",
    "image_derivative",
    "max_displacement",
    "pull_back",
    "root_mean_square",
    "to_normalised",
    "to_pixels",
    "warp",
]


def to_pixels(normalised: float, size: int) -> float:
    """Length in [-1,1] coordinates (align_corners) -> pixels, along an axis of `size` pixels."""
    return normalised * (size - 1) / 2


def to_normalised(pixels: float, size: int) -> float:
    """Length in pixels -> [-1,1] coordinates (align_corners), along an axis of `size` pixels."""
    return pixels * 2 / (size - 1)


def identity_flow(x: Tensor) -> Tensor:
    """The flow (B,2,H,W) that moves nothing, for images x (B,C,H,W)."""
    return x.new_zeros(x.shape[0], 2, *x.shape[2:])


def warp(x: Tensor, flow: Tensor, padding: Padding = "border") -> Tensor:
    """Read every pixel of x (B,C,H,W) at its place plus `flow` (B,2,H,W) in pixels, bilinearly.

    Exact for whole-pixel flows (bit for bit) and differentiable twice in x and in `flow` on every
    device; a first derivative costs about as much as the warp. Beyond the edge lies the edge's own
    pixel (`border`), black (`zeros`) or the image again, mirrored about the centre of the edge's
    pixel (`reflection`), as grid_sample with align_corners=True has them; the derivatives are those
    of the image so continued. Raises UserError for a padding that is none of these.
    """
    if padding not in get_args(Padding):
        choices = ", ".join(get_args(Padding))
        raise UserError(f"unknown padding '{padding}': choose from {choices}")
    dtype = torch.result_type(x, flow)
    x, flow = x.to(dtype), flow.to(dtype).expand(len(x), 2, *x.shape[2:])
    warped: Tensor = Warp.apply(x, flow, padding)
    return warped


def image_derivative(x: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives of the warped image with respect to (right, down) at the identity flow.

    Central differences of x (B,C,H,W), halved one-sided ones at the edge, where the image is flat
    beyond.
    """
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1), mode="replicate")
    right = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
    down = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
    return right, down


def pull_back(gradient: Tensor, x: Tensor) -> Tensor:
    """dL/dflow (B,2,H,W), per pixel of flow, at the identity flow, from dL/dx (B,C,H,W).

    The chain rule through `warp` at flow zero: no warp is needed to know it.
    """
    return onto_flow(gradient, *image_derivative(x))


def max_displacement(flow: Tensor) -> Tensor:
    """The linf size of each flow (B,2,H,W), shape (B,), in pixels: the largest move on an axis."""
    return flow.abs().flatten(1).amax(1)


def root_mean_square(flow: Tensor) -> Tensor:
    """The l2 size of each flow (B,2,H,W), shape (B,), in pixels: the root mean square of its moves.

    The mean is over the pixels, of the squared euclidean length of each move: at most sqrt(2) times
    `max_displacement`, and the same for the same deformation at every image size.
    """
    return flow.square().sum(1).flatten(1).mean(1).sqrt()
