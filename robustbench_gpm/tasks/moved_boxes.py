"""Where boxes go when their image is deformed."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

POINTS = 8  # on each side of a box
STEPS = 100
CLOSE = 1e-4  # pixels
LOST = 0.5  # pixels: a point that cannot be led back as near has left the image's continuum
THINNEST = 1e-3  # pixels


@torch.no_grad()
def move_boxes(y: Tensor, flow: Tensor) -> Tensor:
    """Labels (B,M,5) of images that `deformation.warp` has moved along flows (B,2,H,W) in pixels.

    A flow says where each pixel is read from, so that what was at q comes to the p with p + flow(p)
    = q. That is solved for points on each box's outline, and the new box is the smallest around
    them, cut to the image; a box of which nothing is left in the image becomes a row of -1. Beyond
    the outermost pixels' centres the flow goes on as it is there.

    Solved by p <- p - (p + flow(p) - q)/2. That converges where 1 - M/2 shrinks, M being the
    derivative of p + flow(p): for rotations below 75 degrees, or for shrinking to over a quarter.
    A point that does not come within half a pixel is left out: where a flow folds or tears the
    image, a box is that of what could be led back.
    """
    height, width = flow.shape[2:]
    size = flow.new_tensor((width, height))
    outline = _outline(y[..., :4].to(flow.dtype))  # (B,M,P,2)
    goal = outline.flatten(1, 2)
    place, error = _led_back(goal, flow, size)
    found = (error <= LOST).view(outline.shape[:3])[..., None]
    place = place.view_as(outline)
    low = place.masked_fill(~found, torch.inf).amin(2).maximum(torch.zeros_like(size))
    high = place.masked_fill(~found, -torch.inf).amax(2).minimum(size)
    there = ((high - low) >= THINNEST).all(-1, keepdim=True) & (y[..., 4:] != -1)
    moved = torch.cat((low.to(y.dtype), high.to(y.dtype), y[..., 4:]), -1)
    return torch.where(there, moved, torch.full_like(moved, -1))


def _outline(boxes: Tensor) -> Tensor:
    """Points (...,P,2) around boxes (...,4), the corners among them."""
    along = torch.linspace(0, 1, POINTS + 1, dtype=boxes.dtype, device=boxes.device)[:-1]
    zero, one = torch.zeros_like(along), torch.ones_like(along)
    x = torch.cat((along, one, 1 - along, zero))
    y = torch.cat((zero, along, one, 1 - along))
    corner, side = boxes[..., None, :2], boxes[..., None, 2:] - boxes[..., None, :2]
    return corner + side * torch.stack((x, y), -1)


def _led_back(goal: Tensor, flow: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Places p (B,N,2) with p + flow(p) near `goal` (B,N,2), and how far each is from it (B,N)."""
    place = goal - _read(flow, goal, size)
    excess = place + _read(flow, place, size) - goal
    error = excess.abs().amax(-1)
    best, nearest = place, error
    for _ in range(STEPS):
        open_still = nearest > CLOSE  # points that have arrived stay, whoever else is in the batch
        if not bool(open_still.any()):
            break
        place = place - excess / 2
        excess = place + _read(flow, place, size) - goal
        error = excess.abs().amax(-1)
        better = open_still & (error < nearest)
        best = torch.where(better[..., None], place, best)
        nearest = torch.where(better, error, nearest)
    return best, nearest


def _read(flow: Tensor, place: Tensor, size: Tensor) -> Tensor:
    """The flow (B,N,2) at places (B,N,2), bilinear; (0,0) is the upper left corner of the image."""
    grid = (2 * place / size - 1)[:, None]
    read = grid_sample(flow, grid, "bilinear", "border", align_corners=False)
    return read[:, :, 0].transpose(1, 2)
