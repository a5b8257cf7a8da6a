"""Classification: one label an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..core import Loss, Table
from ..datasets import Split
from ..losses import LOSSES, UNTARGETED, cross_entropy
from .base import Task


@dataclass(frozen=True)
class Classification(Task):
    """One class index an image; a deformation leaves it as it is."""

    name: ClassVar[str] = "classification"
    metric: ClassVar[str] = "accuracy"
    graded: ClassVar[bool] = False
    usual_loss: ClassVar[str | None] = None

    @property
    def loss(self) -> Loss:
        """What training lowers: cross-entropy, shape (B,)."""
        return cross_entropy

    @property
    def losses(self) -> Table[Loss]:
        """Those on class logits that know no target."""
        return UNTARGETED

    def attack_loss(self, name: str) -> Loss:
        """The same, and those that attacks on a target raise by themselves."""
        return LOSSES[name]

    @torch.no_grad()
    def predict(self, model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        """Predicted classes (B,) and their softmax probabilities (B,) for images x (B,C,H,W)."""
        confidence, label = model(x).float().softmax(1).max(1)
        return label, confidence

    def validate(
        self, model: nn.Module, split: Split, device: torch.device, batch_size: int
    ) -> float:
        """The share of a split that the model gets right."""
        model.eval()
        right = 0
        for rows in torch.split(torch.arange(len(split)), batch_size):
            x, y = split.batch(rows)
            labels, _ = self.predict(model, x.to(device))
            right += int((labels == y.to(device)).sum())
        return right / len(split)
