"""Augmentation of images whose labels lie on them: masks and boxes move along."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from .augment import Transform

NO_BOX = -1.0
SMALLEST = 1.0  # pixels on a side that a box must keep to stay a label


def augmented(transform: Transform, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """One image (C,H,W), bytes, and its label after a random transform of both.

    Masks are bytes (H,W) and boxes float (M,5), see `datasets.base.Split`; a class stays as it is.
    """
    if label.dim() == 2 and label.dtype == torch.uint8:
        moved, mask = transform(tv_tensors.Image(image), tv_tensors.Mask(label))  # type: ignore[call-arg]
        return moved.as_subclass(Tensor), mask.as_subclass(Tensor)
    if label.dim() == 2:
        return _with_boxes(transform, image, label)
    return transform(image), label


def _with_boxes(transform: Transform, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    known = label[label[:, 4] != NO_BOX]
    corners = tv_tensors.BoundingBoxes(known[:, :4], format="XYXY", canvas_size=image.shape[-2:])
    moved, boxes = transform(tv_tensors.Image(image), corners)  # type: ignore[call-arg]
    boxes = v2.functional.clamp_bounding_boxes(boxes).as_subclass(Tensor)
    sides = boxes[:, 2:] - boxes[:, :2]
    kept = (sides >= SMALLEST).all(1)
    labels = torch.full_like(label, NO_BOX)
    labels[: int(kept.sum())] = torch.cat((boxes, known[:, 4:]), 1)[kept]
    return moved.as_subclass(Tensor), labels
