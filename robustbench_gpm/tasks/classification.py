"""Classification: one label an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..core import Loss
from ..losses import LOSSES, cross_entropy


@dataclass(frozen=True)
class Classification:
    """One class index an image; a deformation leaves it as it is."""

    name: ClassVar[str] = "classification"
    metric: ClassVar[str] = "accuracy"
    labels_move: ClassVar[bool] = False

    @property
    def loss(self) -> Loss:
        """What training lowers: cross-entropy, shape (B,)."""
        return cross_entropy

    def attack_loss(self, name: str) -> Loss:
        """The loss an attack asks for by name. Raises UserError for a name there is none of."""
        return LOSSES[name]

    @torch.no_grad()
    def predict(self, model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        """Predicted classes (B,) and their softmax probabilities (B,) for images x (B,C,H,W)."""
        confidence, label = model(x).float().softmax(1).max(1)
        return label, confidence
