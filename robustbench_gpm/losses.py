"""Losses on class logits, one number a sample: what attacks raise and training lowers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .core import Loss, Table


@dataclass(frozen=True)
class LogitLoss:
    """A `core.Loss` made of a function (logits (B,K), labels (B,)) -> losses (B,)."""

    name: str
    score: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return self.score(model(x), y)

    def judged(self, model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        logits = model(x)
        right = y.argmax(1) if y.dim() == 2 else y  # of soft labels the likeliest class
        return self.score(logits, y), logits.detach().argmax(1) != right


@dataclass(frozen=True)
class TargetedLogitLoss:
    """The same towards a class: its labels are pairs (B,2) of the right class and the target.

    A sample counts as fooled as soon as it is given any class but the right one.
    """

    name: str
    score: Callable[[Tensor, Tensor, Tensor], Tensor]

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return self.score(model(x), y[:, 0], y[:, 1])

    def judged(self, model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        logits = model(x)
        return self.score(logits, y[:, 0], y[:, 1]), logits.detach().argmax(1) != y[:, 0]


def cross_entropy_of(logits: Tensor, y: Tensor) -> Tensor:
    """-log softmax(logits)[y], shape (B,); y are class indices (B,) or soft labels (B,K)."""
    return nn.functional.cross_entropy(logits, y, reduction="none")


def margin_of(logits: Tensor, y: Tensor) -> Tensor:
    """Largest wrong logit less the right one, shape (B,): positive where a sample is fooled."""
    right = logits.gather(1, y[:, None])
    wrong = logits.scatter(1, y[:, None], -torch.inf)
    return wrong.amax(1) - right.squeeze(1)


def margin_to(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """The target's logit less the right one, shape (B,)."""
    return _at(logits, target) - _at(logits, y)


def dlr_of(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio (Croce & Hein 2020, arXiv 2003.01690, equation 6), shape (B,).

    The margin over the distance of the largest logit from the third largest; with two classes,
    where there is no third, the margin.
    """
    if logits.shape[1] < 3:
        return margin_of(logits, y)
    ordered = logits.topk(3, dim=1).values
    return margin_of(logits, y) / (ordered[:, 0] - ordered[:, 2] + 1e-12)


def dlr_to(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """The same towards a target class (equation 7), shape (B,).

    The third and fourth largest logits give the scale; with three classes the third alone does,
    and with two it is the plain margin.
    """
    if logits.shape[1] < 3:
        return margin_to(logits, y, target)
    ordered = logits.topk(min(4, logits.shape[1]), dim=1).values
    scale = ordered[:, 0] - ordered[:, 2:].mean(1)
    return margin_to(logits, y, target) / (scale + 1e-12)


def _at(logits: Tensor, place: Tensor) -> Tensor:
    return logits.gather(1, place[:, None]).squeeze(1)


cross_entropy = LogitLoss("cross_entropy", cross_entropy_of)
margin = LogitLoss("margin", margin_of)
dlr = LogitLoss("dlr", dlr_of)
margin_targeted = TargetedLogitLoss("margin_targeted", margin_to)
dlr_targeted = TargetedLogitLoss("dlr_targeted", dlr_to)

UNTARGETED: Table[Loss] = Table("loss", {loss.name: loss for loss in (cross_entropy, margin, dlr)})
LOSSES: Table[Loss] = Table(
    "loss",
    {**UNTARGETED, **{loss.name: loss for loss in (margin_targeted, dlr_targeted)}},
)
