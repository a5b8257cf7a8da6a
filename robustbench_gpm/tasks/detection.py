"""Object detection: boxes and their classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ..core import Loss, Table
from .base import Evidence, GradedTask, Measured
from .detection_losses import DETECTION_LOSSES, total
from .detection_metric import average_precision, mean_average_precision, mean_quality
from .moved_boxes import move_boxes

TRUTH = 2.0  # in the place of a score, in evidence: this row is a label


@dataclass(frozen=True)
class Detection(GradedTask):
    """Labels (B,M,5); evidence is an image's predictions (D,6), and its labels as further rows.

    The metric is VOC 2007's: average precision over eleven recalls at an overlap of a half, and the
    mean over classes. COCO's is told beside it where torchmetrics is installed.
    """

    name: ClassVar[str] = "detection"
    metric: ClassVar[str] = "mAP"
    usual_loss: ClassVar[str | None] = "total"
    resampled: ClassVar[bool] = False

    @property
    def loss(self) -> Loss:
        """The sum of a detector's own losses, (B,)."""
        return total

    @property
    def losses(self) -> Table[Loss]:
        """All of a detector's own losses, some of them, and those of objects there are none of."""
        return DETECTION_LOSSES

    def attack_loss(self, name: str) -> Loss:
        """The same; what attacks call cross-entropy is what training lowers."""
        return total if name == "cross_entropy" else DETECTION_LOSSES[name]

    def measure(self, model: nn.Module, x: Tensor, y: Tensor, classes: int) -> Measured:  # noqa: ARG002
        """Score: an image's F1 at an overlap of a half, the mean over least scores."""
        found, y = model(x).float().cpu(), y.float().cpu()
        evidence = []
        for rows, labels in zip(found, y, strict=True):
            mark = torch.full_like(labels[:, :1], TRUTH)
            truth = torch.cat((labels[:, :4], mark, labels[:, 4:]), 1)
            kept = (rows[rows[:, 5] >= 0], truth[truth[:, 5] != -1])
            evidence.append(torch.cat(kept).numpy())
        return Measured(mean_quality(found, y), evidence, found)

    def metric_of(self, evidence: Sequence[Evidence], classes: int) -> float:
        """VOC's mean average precision; 0 where no image has an object."""
        precisions = average_precision(*_parted(evidence), classes)
        return float(precisions.nanmean().nan_to_num(0.0))

    def further_metrics(self, evidence: Sequence[Evidence], classes: int) -> dict[str, float]:  # noqa: ARG002
        """COCO's mAP, at overlaps of .5 to .95, of .5 and of .75, where torchmetrics is there."""
        if find_spec("torchmetrics") is None or find_spec("faster_coco_eval") is None:
            return {}
        found = mean_average_precision(*_parted(evidence))
        return {f"coco_{name}": max(0.0, value) for name, value in found.items()}

    def moved(self, y: Tensor, flow: Tensor) -> Tensor:
        """Each box around where its outline comes to lie."""
        return move_boxes(y, flow)


def _parted(evidence: Sequence[Evidence]) -> tuple[Tensor, Tensor]:
    """Predictions (N,D,6) and labels (N,M,5), padded with rows of -1."""
    images = [torch.from_numpy(np.array(image)) for image in evidence]
    found = [image[image[:, 4] != TRUTH] for image in images]
    truth = [image[image[:, 4] == TRUTH][:, [0, 1, 2, 3, 5]] for image in images]
    return pad_sequence(found, True, -1.0), pad_sequence(truth, True, -1.0)
