"""The arithmetic of boxes that every detector shares: anchors, matching, offsets, what is kept.

Boxes are rows (x1,y1,x2,y2) in pixels, x to the right and y downwards from the upper left corner of
the image: a box around the first pixel alone is (0,0,1,1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image

BETWEEN, BACKGROUND = -2, -1  # matched to no box: too near one to be background, or background
DETECTIONS = 100  # predictions of an image, at most
LARGEST_GROWTH = math.log(1000 / 16)  # of a side; an exponent beyond it could overflow


def split_labels(y: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes (m,4) and classes int64 (m,) out of one image's labels (M,5).

    Rows of a negative class are none: padding (-1), and objects that are not to be learnt.
    """
    there = y[y[:, 4] >= 0]
    return there[:, :4], there[:, 4].to(torch.int64)


def anchor_grid(
    shapes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    sizes: Sequence[Sequence[float]],
    ratios: Sequence[float],
) -> Tensor:
    """Anchors (A,4) of feature maps of these shapes (H,W), in the order level, row, column, anchor.

    A cell's anchors are centred on it. `sizes` are the roots of their areas in pixels, one
    sequence a level, and `ratios` their heights over their widths; sizes change fastest.
    """
    levels = []
    for (height, width), stride, level_sizes in zip(shapes, strides, sizes, strict=True):
        roots = torch.tensor(ratios, dtype=torch.float64).sqrt()[:, None]
        side = torch.tensor(level_sizes, dtype=torch.float64)
        half = torch.stack((side / roots, side * roots), -1).view(-1, 2) / 2
        rows = (torch.arange(height, dtype=torch.float64) + 0.5) * stride
        columns = (torch.arange(width, dtype=torch.float64) + 0.5) * stride
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        centre = torch.stack((x, y), -1).view(-1, 1, 2)
        levels.append(torch.cat((centre - half, centre + half), -1).view(-1, 4))
    return torch.cat(levels)


def encode(boxes: Tensor, anchors: Tensor, weights: Sequence[float] = (1, 1, 1, 1)) -> Tensor:
    """Offsets (N,4) that lead from anchors (N,4) to boxes (N,4), each times its weight.

    The parametrisation of R-CNN (Girshick et al. 2014, arXiv 1311.2524, appendix C): shifts of the
    centre in the anchor's own width and height, and logarithms of the growth of both.
    """
    centre, side = _centre_and_side(boxes)
    own_centre, own_side = _centre_and_side(anchors)
    offsets = torch.cat(((centre - own_centre) / own_side, (side / own_side).log()), -1)
    return offsets * offsets.new_tensor(weights)


def decode(offsets: Tensor, anchors: Tensor, weights: Sequence[float] = (1, 1, 1, 1)) -> Tensor:
    """The boxes (...,4) to which offsets (...,4) lead from anchors (...,4); undoes `encode`."""
    shift, growth = torch.split(offsets / offsets.new_tensor(weights), 2, -1)
    centre, side = _centre_and_side(anchors)
    centre = centre + shift * side
    half = growth.clamp(max=LARGEST_GROWTH).exp() * side / 2
    return torch.cat((centre - half, centre + half), -1)


def match(
    boxes: Tensor, anchors: Tensor, low: float, high: float, *, rescue: bool = False
) -> Tensor:
    """Which of the boxes (m,4) each anchor (A,4) stands for: its place, BETWEEN or BACKGROUND.

    An anchor stands for the box it overlaps most where their IoU is at least `high`, and is
    background below `low`. With `rescue`, so that no box goes without, the anchors that overlap
    some box the most stand for the box that they themselves overlap most, however little that is
    (Ren et al. 2015, arXiv 1506.01497, section 3.1.2).
    """
    if len(boxes) == 0:
        return torch.full((len(anchors),), BACKGROUND, device=anchors.device)
    overlap: Tensor = box_iou(boxes, anchors)
    best, place = overlap.max(0)
    matched = place.masked_fill(best < high, BETWEEN).masked_fill(best < low, BACKGROUND)
    if rescue:
        nearest = overlap.amax(1, keepdim=True)
        matched = torch.where(((overlap == nearest) & (nearest > 0)).any(0), place, matched)
    return matched


def detections(
    boxes: Tensor,
    scores: Tensor,
    classes: Tensor,
    shape: tuple[int, int],
    *,
    least_score: float,
    overlap: float,
    longest: int = 1000,
) -> Tensor:
    """Predictions (DETECTIONS,6) of an image of `shape` (H,W), best first, padded with rows of -1.

    Out of candidates (N,4), their scores (N,) in [0,1] and classes (N,): those above `least_score`,
    at most `longest`, are clipped to the image and thinned out (non-maximum suppression at the IoU
    `overlap`, class by class).
    """
    found = scores.new_full((DETECTIONS, 6), -1)
    candidates = (scores > least_score).nonzero().flatten()
    order = scores[candidates].topk(min(longest, len(candidates))).indices
    chosen = candidates[order]
    boxes, scores, classes = (
        clip_boxes_to_image(boxes[chosen], shape),
        scores[chosen],
        classes[chosen],
    )
    kept = keep_apart(boxes, scores, classes, overlap)[:DETECTIONS]
    rows = torch.cat((boxes[kept], scores[kept, None], classes[kept, None].to(scores.dtype)), 1)
    return torch.cat((rows, found[len(rows) :]))


def keep_apart(boxes: Tensor, scores: Tensor, groups: Tensor, overlap: float) -> Tensor:
    """Places, best first, of what non-maximum suppression within each group leaves.

    Boxes (N,4) without an area are left out.
    """
    boxes, scores = boxes.float(), scores.float()
    solid = ((boxes[:, 2:] - boxes[:, :2]) > 0.01).all(1).nonzero().flatten()
    kept: Tensor = solid[batched_nms(boxes[solid], scores[solid], groups[solid], overlap)]
    return kept


def _centre_and_side(boxes: Tensor) -> tuple[Tensor, Tensor]:
    upper_left, lower_right = torch.split(boxes, 2, -1)
    return (upper_left + lower_right) / 2, lower_right - upper_left
