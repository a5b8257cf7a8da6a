"""Attacks that raise whatever loss they are handed, and so can be told which."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..core import UserError
from .base import Attack

USUAL = "usual"


@dataclass(frozen=True)
class AnyLoss(Attack):
    """An attack that never looks at the labels itself: these may be anything the loss takes.

    `loss` is the name of one that the task has; `usual` is the attack's own on class logits, and
    what training lowers elsewhere.
    """

    loss: str = field(default=USUAL, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.loss, str) or not self.loss:
            raise UserError(f"{type(self).__name__}: loss must be a name, not {self.loss!r}")

    @property
    def loss_name(self) -> str:
        return self.usual_loss if self.loss == USUAL else self.loss

    @property
    def compares(self) -> bool:
        """Whether losses of different steps are held against each other: they must be of a kind."""
        return False


def raises_any_loss(attack: Attack) -> bool:
    """Whether an attack never looks at the labels itself: these may be anything the loss takes."""
    return isinstance(attack, AnyLoss)
