"""Attacks in turn: each on the clean images of the samples that those before it left standing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..core import Loss, Samples, UserError
from ..losses import LOSSES
from .ascent import judged
from .base import Attack
from .threats import Threat


@dataclass(frozen=True)
class Ensemble(Attack):
    """The worst of its members, all of one threat model; `Samples.broken_by` says whose work it is.

    A member raises the loss that it names itself; the `loss` handed over says who is fooled.
    """

    members: tuple[tuple[str, Attack], ...] = ()

    def __post_init__(self) -> None:
        """Refuse members that cannot be compared."""
        given = self.members if isinstance(self.members, tuple) else ()
        if len({attack.threat.name for _, attack in given}) != 1:
            raise UserError(f"{type(self).__name__}: members must be attacks of one threat model")

    @property
    def threat(self) -> Threat:
        return self.members[0][1].threat

    def perturb(
        self, model: nn.Module, x: Tensor, y: Tensor, budget: float, loss: Loss, samples: Samples
    ) -> Tensor:
        found = x.clone()
        standing = torch.arange(len(x), device=x.device)
        for name, attack in self.members:
            if len(standing) == 0:
                break
            images, labels = x[standing], y[standing]
            here = samples.select(standing)
            own = LOSSES[attack.loss_name]
            attacked = attack.perturb(model, images, labels, budget, own, here)
            _, fooled = judged(model, attacked, labels, loss, here)
            here.select(fooled).credit(name)
            found[standing] = attacked
            standing = standing[~fooled]
        return found
