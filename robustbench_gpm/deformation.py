"""Deformations: flows in pixels, and a bilinear warp that is differentiable twice.

A flow (B,2,H,W) moves the place each output pixel is read from: `flow[:, 0]` to the right,
`flow[:, 1]` downwards, both in pixels, so that a flow means the same at every image size.

Bilinear interpolation has a kink at every pixel centre. There, and only there, the warp's
derivative with respect to the flow is the mean of its two one-sided derivatives, which is the
central difference of the image: no direction is preferred, and a deformation of an undeformed image
has a useful gradient.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Padding = Literal["border", "zeros"]


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

    Exact for whole-pixel flows (bit for bit at flow zero) and differentiable twice in x and in
    `flow` on every device. Beyond the edge lies the edge's own pixel (`border`) or black (`zeros`).
    """
    height, width = x.shape[2:]
    rows = torch.arange(height, device=x.device).view(1, height, 1)
    columns = torch.arange(width, device=x.device).view(1, 1, width)
    column_taps = _taps(columns, flow[:, 0], width, padding)
    row_taps = _taps(rows, flow[:, 1], height, padding)
    pixels = x.flatten(2)
    out = torch.zeros_like(x)
    for row, row_weight in row_taps:
        for column, column_weight in column_taps:
            place = (row * width + column).flatten(1).unsqueeze(1).expand(-1, x.shape[1], -1)
            weight = (row_weight * column_weight).unsqueeze(1)
            out = out + weight * pixels.gather(2, place).view_as(x)
    return out


def _taps(base: Tensor, shift: Tensor, size: int, padding: Padding) -> list[tuple[Tensor, Tensor]]:
    """Along one axis: the three pixels around `base + shift` (B,H,W), each with its weight."""
    whole = shift.detach().round()
    if padding == "border":  # clamped well outside, so that a huge flow cannot overflow an index
        whole = whole.clamp(-size, size)
        shift = shift.clamp(-size, size)
    rest = shift - whole  # in [-.5, .5]; exact, because `whole` is an integer near `shift`
    taps = []
    for offset in (-1, 0, 1):
        # A hat function. torch.maximum halves the gradient at a tie, so that at a pixel centre
        # (rest == 0) the outer taps get +1/2 and -1/2: the central difference.
        weight = torch.maximum(1 - (rest - offset).abs(), torch.zeros_like(rest))
        place = base + whole.to(torch.int64).clamp(-2 * size, 2 * size) + offset
        if padding == "zeros":
            weight = weight * ((place >= 0) & (place < size))
        taps.append((place.clamp(0, size - 1), weight))
    return taps


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
    right, down = image_derivative(x)
    return torch.stack(((gradient * right).sum(1), (gradient * down).sum(1)), dim=1)


def max_displacement(flow: Tensor) -> Tensor:
    """The linf size of each flow (B,2,H,W), shape (B,), in pixels: the largest move on an axis."""
    return flow.abs().flatten(1).amax(1)


def root_mean_square(flow: Tensor) -> Tensor:
    """The l2 size of each flow (B,2,H,W), shape (B,), in pixels: the root mean square of its moves.

    The mean is over the pixels, of the squared euclidean length of each move: at most sqrt(2) times
    `max_displacement`, and the same for the same deformation at every image size.
    """
    return flow.square().sum(1).flatten(1).mean(1).sqrt()
