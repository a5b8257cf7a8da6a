"""What the checks see of a model, task by task: its outputs, how right they are, and a loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..attacks.ascent import judged
from ..core import Loss, Samples
from ..tasks import Classification, Detection, GradedTask
from ..tasks.base import Evidence
from ..tasks.multilabel import MultiLabel


class View(ABC):
    """A task as the checks see it. Images are x (B,C,H,W) in [0,1], labels y (B,...)."""

    most: ClassVar[int]  # images that are examined in each norm
    standing: ClassVar[float]  # how much of them may stand an attack without a bound
    material: ClassVar[float]  # share of a score by which random search beats gradients, if at all

    @property
    def logits(self) -> bool:
        """Whether the outputs are logits, a channel a class."""
        return True

    @property
    def exclusive(self) -> bool:
        """Whether one class excludes another, so that a softmax makes probabilities of logits."""
        return True

    def outputs(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        """Outputs (B,...) with a gradient, by which two passes are compared; here the logits."""
        logits: Tensor = model(x)
        return logits

    @abstractmethod
    def right(self, model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, list[Evidence]]:
        """How right the model is about each sample, (B,) in [0,1], and evidence for the metric."""

    @abstractmethod
    def metric_of(self, evidence: list[Evidence]) -> float | None:
        """The metric, in [0,1], of samples by their evidence; None where `right` says it all."""

    @abstractmethod
    def loss_of(self, name: str) -> Loss:
        """What an attack that asks for a loss of this name is to raise."""

    @abstractmethod
    def judge(
        self, model: nn.Module, x: Tensor, y: Tensor, samples: Samples
    ) -> tuple[Tensor, Tensor]:
        """How near to an error each sample is, (B,), and its score, (B,) in [0,1]; booked."""


@dataclass(frozen=True)
class ClassView(View):
    """One class a sample: a score of 1 where it is right, else 0."""

    most: ClassVar[int] = 128
    standing: ClassVar[float] = 0.05
    material: ClassVar[float] = 0.0
    task: Classification = Classification()

    def right(self, model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, list[Evidence]]:
        return (self.task.predict(model, x)[0] == y).double(), []

    def metric_of(self, evidence: list[Evidence]) -> None:  # noqa: ARG002
        return None

    def loss_of(self, name: str) -> Loss:
        return self.task.attack_loss(name)

    def judge(
        self, model: nn.Module, x: Tensor, y: Tensor, samples: Samples
    ) -> tuple[Tensor, Tensor]:
        """The margin, not the loss attacked: it keeps rising where a softmax has saturated."""
        margins, fooled = judged(model, x, y, self.task.attack_loss("margin"), samples)
        return margins, (~fooled).double()


@dataclass(frozen=True)
class GradedView(View):
    """A task whose predictions are graded, by each sample's own score.

    `loss` is what every attack of the checks raises. It takes nobody for fooled, so that attacks go
    on to their end.
    """

    most: ClassVar[int] = 12  # few: nobody leaves an attack early, each costs what it can
    # Ascent in l2 leaves up to a quarter of honest scores where sigmoids saturate one by one.
    standing: ClassVar[float] = 0.5
    material: ClassVar[float] = 0.02
    task: GradedTask
    classes: int
    loss: Loss

    @property
    def logits(self) -> bool:
        return not isinstance(self.task, Detection)

    @property
    def exclusive(self) -> bool:
        return not isinstance(self.task, MultiLabel)

    def outputs(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Logits; of a detector its losses, since its boxes come without a gradient."""
        if self.logits:
            return super().outputs(model, x, y)
        return torch.stack(list(model(x, y).values()), 1)

    def right(self, model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, list[Evidence]]:
        measured = self.task.measure(model, x, y, self.classes)
        return measured.score.double(), measured.evidence

    def metric_of(self, evidence: list[Evidence]) -> float:
        return self.task.metric_of(evidence, self.classes)

    def loss_of(self, name: str) -> Loss:  # noqa: ARG002 - there is one for all
        return self.loss

    @torch.no_grad()
    def judge(
        self, model: nn.Module, x: Tensor, y: Tensor, samples: Samples
    ) -> tuple[Tensor, Tensor]:
        losses = self.loss(model, x, y)
        scores = self.task.measure(model, x, y, self.classes).score
        samples.book(forwards=2)
        return losses, scores.double().to(losses.device)
