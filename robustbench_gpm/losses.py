"""Losses on class logits, one number a sample: what attacks raise and training lowers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .core import Table


@dataclass(frozen=True)
class LogitLoss:
    """A `core.Loss` made of a function (logits (B,K), labels (B,)) -> losses (B,)."""

    name: str
    score: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return self.score(model(x), y)

    def judged(self, model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        logits = model(x)
        return self.score(logits, y), logits.detach().argmax(1) != y


def cross_entropy_of(logits: Tensor, y: Tensor) -> Tensor:
    """-log softmax(logits)[y], shape (B,); y are class indices (B,) or soft labels (B,K)."""
    return nn.functional.cross_entropy(logits, y, reduction="none")


def margin_of(logits: Tensor, y: Tensor) -> Tensor:
    """Largest wrong logit less the right one, shape (B,): positive where a sample is fooled."""
    right = logits.gather(1, y[:, None])
    wrong = logits.scatter(1, y[:, None], -torch.inf)
    return wrong.amax(1) - right.squeeze(1)


cross_entropy = LogitLoss("cross_entropy", cross_entropy_of)
margin = LogitLoss("margin", margin_of)

LOSSES: Table[LogitLoss] = Table("loss", {loss.name: loss for loss in (cross_entropy, margin)})
