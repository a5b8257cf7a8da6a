"""Segmentation metrics out of confusion matrices, which sum up over images.

A confusion matrix (K,K) counts pixels: those of class i that were taken for class j, at [i, j].
Void pixels are in none.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..masks import VOID


def confusion(predicted: Tensor, y: Tensor, classes: int) -> Tensor:
    """Confusion matrices (B,K,K), int64, of predicted classes (B,H,W) for masks y (B,H,W).

    Raises ValueError for a class that is not in 0..K-1 on a pixel that counts.
    """
    if predicted.shape != y.shape:
        raise ValueError(f"predictions {tuple(predicted.shape)} for masks {tuple(y.shape)}")
    predicted, y = predicted.flatten(1).long(), y.flatten(1).long()
    counts = y != VOID
    for what in (predicted[counts], y[counts]):
        if what.numel() and not 0 <= int(what.min()) <= int(what.max()) < classes:
            raise ValueError(f"a class outside 0..{classes - 1} in a prediction or a mask")
    samples = torch.arange(len(y), device=y.device).unsqueeze(1)
    cells = (samples * classes + y) * classes + predicted
    size = len(y) * classes * classes
    return torch.bincount(cells[counts], minlength=size).view(len(y), classes, classes)


def class_iou(confusions: Tensor) -> Tensor:
    """Intersection over union of each class, (...,K) float64, of matrices (...,K,K).

    NaN for a class that is neither in the masks nor predicted.
    """
    counts = confusions.double()
    right = counts.diagonal(dim1=-2, dim2=-1)
    return right / (counts.sum(-1) + counts.sum(-2) - right)


def mean_iou(confusions: Tensor) -> Tensor:
    """Mean intersection over union, a float64 scalar, of all images' matrices (N,K,K) together.

    The images' pixels are pooled first, as Pascal VOC and Cityscapes do; then the mean is over the
    classes that occur, in the masks or in the predictions. NaN where none does.
    """
    return class_iou(confusions.sum(0)).nanmean()


def image_iou(confusions: Tensor) -> Tensor:
    """Each image's own mean intersection over union, (N,) float64; NaN where all of it is void."""
    return class_iou(confusions).nanmean(-1)


def pixel_accuracy(confusions: Tensor) -> Tensor:
    """The share of pixels given their class, (N,) float64, of (N,K,K); NaN where all are void."""
    counts = confusions.double()
    return counts.diagonal(dim1=-2, dim2=-1).sum(-1) / counts.sum((-2, -1))
