"""Semantic segmentation: a class for every pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from .. import masks
from ..core import Loss, Table
from .base import Evidence, GradedTask, Measured
from .segmentation_losses import SEGMENTATION_LOSSES, pixel_cross_entropy
from .segmentation_metric import confusion, image_iou, mean_iou, pixel_accuracy


@dataclass(frozen=True)
class Segmentation(GradedTask):
    """Masks (B,H,W) of classes, or VOID; evidence is an image's confusion matrix (K,K)."""

    name: ClassVar[str] = "segmentation"
    metric: ClassVar[str] = "mIoU"
    usual_loss: ClassVar[str | None] = "cross_entropy"
    resampled: ClassVar[bool] = True

    @property
    def loss(self) -> Loss:
        """The mean cross-entropy of each image's pixels, (B,)."""
        return pixel_cross_entropy

    @property
    def losses(self) -> Table[Loss]:
        """Pixel by pixel: all alike, or the right ones before the wrong ones."""
        return SEGMENTATION_LOSSES

    def measure(self, model: nn.Module, x: Tensor, y: Tensor, classes: int) -> Measured:
        """Score: an image's own mean IoU; 0 where all of it is void."""
        predicted = model(x).argmax(1)
        confusions = confusion(predicted, y, classes).cpu()
        score = image_iou(confusions).nan_to_num(0.0).float()
        return Measured(score, list(confusions.float().numpy()), predicted.cpu())

    def metric_of(self, evidence: Sequence[Evidence], classes: int) -> float:  # noqa: ARG002
        """Mean IoU over all images' pixels together."""
        return float(mean_iou(_stacked(evidence)).nan_to_num(0.0))

    def further_metrics(self, evidence: Sequence[Evidence], classes: int) -> dict[str, float]:  # noqa: ARG002
        """The share of pixels that are right."""
        return {"pixel_accuracy": float(pixel_accuracy(_stacked(evidence).sum(0)).nan_to_num(0.0))}

    def moved(self, y: Tensor, flow: Tensor) -> Tensor:
        """Each pixel's class from where the flow says; void from beyond the image."""
        return masks.moved(y, flow)


def _stacked(evidence: Sequence[Evidence]) -> Tensor:
    return torch.from_numpy(np.stack(evidence)).double()
