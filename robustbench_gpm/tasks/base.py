"""What a model is for: what training lowers, what attacks raise, and how results are told."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..core import Loss, Table
from ..datasets import Split

Evidence = NDArray[np.float32]


class Task(ABC):
    """A subclass is a frozen dataclass without fields that must be given."""

    name: ClassVar[str]
    metric: ClassVar[str]  # in words, as on an axis
    graded: ClassVar[bool]  # whether a prediction can be half right; see GradedTask
    usual_loss: ClassVar[str | None]  # what attacks raise untold; None if each has one of its own

    @property
    def validated(self) -> str:
        """What the metric on the validation split is called in a training's history."""
        return f"validation_{self.metric}"

    @property
    @abstractmethod
    def loss(self) -> Loss:
        """What training lowers, one number a sample."""

    @property
    @abstractmethod
    def losses(self) -> Table[Loss]:
        """What an attack may be told to raise, by name."""

    def attack_loss(self, name: str) -> Loss:
        """The loss an attack asks for by name. Raises UserError for a name there is none of."""
        return self.losses[name]

    @abstractmethod
    def validate(
        self, model: nn.Module, split: Split, device: torch.device, batch_size: int
    ) -> float:
        """The metric, in [0,1], of a model in evaluation mode on a split."""


@dataclass(frozen=True)
class Measured:
    """What a model made of some samples.

    score (B,) in [0,1], 1 where everything is right, says which of two predictions on a sample is
    the worse; evidence: an array a sample, all that the metric of many samples needs; prediction
    (B,...): what was predicted, for pictures.
    """

    score: Tensor
    evidence: list[Evidence]
    prediction: Tensor


class GradedTask(Task):
    """A task whose metric is of many samples together, such as mean IoU or mAP.

    An attack's work on a sample is then not a yes or no but a score, which it lowers.
    """

    graded: ClassVar[bool] = True
    resampled: ClassVar[bool]  # whether the metric is quick enough to be taken hundreds of times

    @abstractmethod
    def measure(self, model: nn.Module, x: Tensor, y: Tensor, classes: int) -> Measured:
        """What a model in evaluation mode makes of images x (B,C,H,W) with labels y (B,...)."""

    @abstractmethod
    def metric_of(self, evidence: Sequence[Evidence], classes: int) -> float:
        """The metric, in [0,1], of samples by their evidence."""

    def further_metrics(self, evidence: Sequence[Evidence], classes: int) -> dict[str, float]:  # noqa: ARG002
        """Other metrics of the same evidence, by name."""
        return {}

    @abstractmethod
    def moved(self, y: Tensor, flow: Tensor) -> Tensor:
        """Labels y (B,...) moved as a flow (B,2,H,W), in pixels, moves the image's pixels."""

    @torch.no_grad()
    def validate(
        self, model: nn.Module, split: Split, device: torch.device, batch_size: int
    ) -> float:
        model.eval()
        evidence: list[Evidence] = []
        for rows in torch.split(torch.arange(len(split)), batch_size):
            x, y = split.batch(rows)
            measured = self.measure(model, x.to(device), y.to(device), len(split.classes))
            evidence += measured.evidence
        return self.metric_of(evidence, len(split.classes))
