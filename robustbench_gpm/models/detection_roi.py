"""RoIAlign in operations that autograd differentiates any number of times."""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor


def roi_align(
    features: Tensor, boxes: Tensor, image: Tensor, scale: float, size: int = 7, samples: int = 2
) -> Tensor:
    """Features (K,C,size,size) of K boxes, read from maps (B,C,H,W): RoIAlign.

    He et al. 2017 (arXiv 1703.06870, section 3), with the half-pixel alignment that torchvision
    calls `aligned`: boxes (K,4) in pixels times `scale` are boxes on the map, of size x size bins,
    each the mean of samples x samples bilinear readings. A reading more than a cell outside the map
    is 0, and one nearer the map is that of its edge. `image` (K,) says which map a box is of.

    Other than torchvision's kernel, whose backward pass has no derivative, it can be differentiated
    twice, in the features and in the boxes. Where nothing is recorded, that kernel does it, which
    is several times faster.
    """
    if not torch.is_grad_enabled() and features.dtype in {torch.float32, torch.float64}:
        rows = torch.cat((image[:, None].to(features.dtype), boxes.to(features.dtype)), 1)
        kernel: Tensor = torchvision.ops.roi_align(features, rows, size, scale, samples, True)
        return kernel
    return _differentiable(features, boxes, image, scale, size, samples)


def _differentiable(
    features: Tensor, boxes: Tensor, image: Tensor, scale: float, size: int, samples: int
) -> Tensor:
    count, (_, channels, height, width) = len(boxes), features.shape
    upper_left, lower_right = torch.split(boxes * scale - 0.5, 2, 1)
    bins = (lower_right - upper_left) / size
    steps = (torch.arange(size * samples, device=boxes.device, dtype=boxes.dtype) + 0.5) / samples
    places = upper_left[:, :, None] + bins[:, :, None] * steps  # (K,2,size*samples): x and y
    columns, column_weights = _taps(places[:, 0], width)
    rows, row_weights = _taps(places[:, 1], height)
    cell = (image[:, None] * height + rows.flatten(1))[:, :, None] * width + columns.flatten(1)[
        :, None
    ]
    weight = row_weights.flatten(1)[:, :, None] * column_weights.flatten(1)[:, None]
    # Readings of a bin side by side: (K, bin row, bin column, its readings).
    cell, weight = (_by_bin(t, count, size) for t in (cell, weight))
    flat = features.permute(0, 2, 3, 1).reshape(-1, channels)
    read = flat.index_select(0, cell.flatten()).view(-1, cell.shape[3], channels)
    pooled = torch.bmm(weight.flatten(0, 2).unsqueeze(1).to(read.dtype), read)
    return pooled.view(count, size, size, channels).permute(0, 3, 1, 2) / samples**2


def _taps(place: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Along one axis: the two cells around each place (K,n), and their weights, both (K,n,2)."""
    inside = (place >= -1) & (place <= length)
    place = place.clamp(0, length - 1)
    first = place.detach().floor().clamp(max=max(length - 2, 0))
    rest = place - first
    cells = torch.stack((first, (first + 1).clamp(max=length - 1)), -1).to(torch.int64)
    return cells, torch.stack((1 - rest, rest), -1) * inside[..., None]


def _by_bin(readings: Tensor, count: int, size: int) -> Tensor:
    taps = readings.shape[2] // size
    apart = readings.view(count, size, taps, size, taps)
    return apart.transpose(2, 3).flatten(3)
