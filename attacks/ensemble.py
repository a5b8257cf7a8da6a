"""Attacks in turn: each on the clean images of the samples that those before it left standing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..core import Loss, Samples, UserError
from ..losses import LOSSES
from .ascent import judged
from .base import Attack
from .perturbed import Perturbed
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

    def outcome(
        self, model: nn.Module, x: Tensor, y: Tensor, budget: float, loss: Loss, samples: Samples
    ) -> Perturbed:
        found = Perturbed.changed(x, x.clone())
        standing = torch.arange(len(x), device=x.device)
        for place, (name, attack) in enumerate(self.members):
            if len(standing) == 0:
                break
            images, labels = x[standing], y[standing]
            here = samples.select(standing)
            own, share = LOSSES[attack.loss_name], self.budget_of(place, budget)
            attacked = attack.outcome(model, images, labels, share, own, here)
            attacked = attack.within(images, attacked, share)
            _, fooled = judged(model, attacked.images, labels, loss, here)
            here.credit(name)
            found.put(standing, attacked)
            standing = standing[~fooled]
        return found

    def each_found(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        budget: float,
        loss_of: Callable[[Attack], Loss],
        samples: Samples,
    ) -> Iterator[Perturbed]:
        for place, (_, attack) in enumerate(self.members):
            share = self.budget_of(place, budget)
            yield from attack.each_found(
                model, x, y, budget=share, loss_of=loss_of, samples=samples
            )

    def perturb(
        self, model: nn.Module, x: Tensor, y: Tensor, budget: float, loss: Loss, samples: Samples
    ) -> Tensor:
        return self.outcome(model, x, y, budget, loss, samples).images

    def budget_of(self, place: int, budget: float) -> float:  # noqa: ARG002
        """What the member at that place may spend of the whole's budget."""
        return budget

    def size(self, found: Perturbed) -> Tensor:
        return self.members[0][1].size(found)

    def drawn_in(self, x: Tensor, found: Perturbed, budgets: float | Tensor) -> Perturbed:
        return self.members[0][1].drawn_in(x, found, budgets)
