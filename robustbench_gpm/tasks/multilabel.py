"""Several classes at once, such as the triplets of instrument, verb and target in surgery."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ..core import Loss, Table
from .base import Evidence, GradedTask, Measured
from .multilabel_loss import mean_average_precision, multi_hot

LOSSES: Table[Loss] = Table("multi-label loss", {"cross_entropy": multi_hot})


@dataclass(frozen=True)
class MultiLabel(GradedTask):
    """Labels (B,K) of 0 and 1; evidence is a sample's probabilities, and its labels, (2,K)."""

    name: ClassVar[str] = "multilabel"
    metric: ClassVar[str] = "mAP"
    usual_loss: ClassVar[str | None] = "cross_entropy"
    resampled: ClassVar[bool] = True

    @property
    def loss(self) -> Loss:
        """Binary cross-entropy, the mean over classes, (B,)."""
        return multi_hot

    @property
    def losses(self) -> Table[Loss]:
        """What training lowers is all there is."""
        return LOSSES

    def measure(self, model: nn.Module, x: Tensor, y: Tensor, classes: int) -> Measured:  # noqa: ARG002
        """Score: the mean probability that is given to what is so, class by class."""
        probability = model(x).float().sigmoid().cpu()
        truth = y.float().cpu()
        score = torch.where(truth > 0.5, probability, 1 - probability).mean(1)
        evidence = list(torch.stack((probability, truth), 1).numpy())
        return Measured(score, evidence, probability)

    def metric_of(self, evidence: Sequence[Evidence], classes: int) -> float:  # noqa: ARG002
        """Mean average precision over the classes that hold somewhere; 0 where none does."""
        rows = torch.from_numpy(np.stack(evidence))
        return float(np.nan_to_num(mean_average_precision(rows[:, 0], rows[:, 1])))

    def moved(self, y: Tensor, flow: Tensor) -> Tensor:  # noqa: ARG002
        """Labels that lie nowhere stay."""
        return y
