"""Masks: a class for every pixel, or none.

A mask is a tensor (B,H,W) of classes 0..K-1, and of `VOID` where a pixel has no class and does not
count: neither in a loss nor in a metric.
"""

from __future__ import annotations

import torch
from torch import Tensor

VOID = 255


def moved(masks: Tensor, flow: Tensor) -> Tensor:
    """Masks (B,H,W) as `deformation.warp` by `flow` (B,2,H,W), in pixels, moves their images.

    Each pixel takes the class at its place plus the flow, rounded to the nearest pixel (halves go
    right and down), since classes cannot be mixed; it is void where that lies outside the image.
    Exact for whole-pixel flows. The result has the type of `masks`.
    """
    height, width = masks.shape[-2:]
    rows = torch.arange(height, device=masks.device).view(1, -1, 1)
    columns = torch.arange(width, device=masks.device)
    row = rows + _nearest(flow[:, 1], height)
    column = columns + _nearest(flow[:, 0], width)
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    place = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
    taken = masks.flatten(1).gather(1, place.flatten(1)).view_as(masks)
    return taken.masked_fill(~inside, VOID)


def _nearest(shift: Tensor, size: int) -> Tensor:
    """Whole pixels, no further than what surely leaves an axis of `size` pixels."""
    return (shift.clamp(-size - 1, size + 1) + 0.5).floor().to(torch.int64)
