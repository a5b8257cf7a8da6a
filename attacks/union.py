"""The worst case over attacks of different threats, and attacks on top of each other.

Each part has a budget of its own, in the unit of its own threat. The whole's budget is a factor to
all of them: at 0.5 every part may spend half of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..core import Loss, Samples, UserError
from ..losses import LOSSES
from .ascent import judged
from .base import Attack, FlowAttack
from .ensemble import Ensemble
from .perturbed import Perturbed
from .threats import COMPOSED, UNION, Threat


@dataclass(frozen=True)
class Union(Ensemble):
    """The union of the members' threats: a sample is fooled if any of them fools it.

    `budgets` are the members' own, one each. A perturbation's size is that of the member that
    allows it most easily: a flow is measured by the members that move pixels, and a change of
    intensities by those that do not.
    """

    budgets: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Refuse members that cannot be, or have no budget above 0."""
        given = self.members if isinstance(self.members, tuple) else ()
        if len(given) < 2 or not all(map(_is_part, given)):
            raise UserError(
                "Union: members must be at least two attacks, none of them a union, a composition "
                "or one that cannot be drawn back into a smaller budget"
            )
        _check_budgets(self, self.budgets, len(given))

    @property
    def threat(self) -> Threat:
        return UNION

    def budget_of(self, place: int, budget: float) -> float:
        return budget * self.budgets[place]

    def size(self, found: Perturbed) -> Tensor:
        return self._sizes(found).amin(0)

    def drawn_in(self, x: Tensor, found: Perturbed, budgets: float | Tensor) -> Perturbed:
        nearest = self._sizes(found).argmin(0)
        shares = torch.as_tensor(budgets, dtype=x.dtype, device=x.device).expand(len(x))
        drawn = Perturbed.changed(x, x.clone())
        for place, (_, attack) in enumerate(self.members):
            own = nearest == place
            limits = shares[own] * self.budgets[place]
            drawn.put(own, attack.drawn_in(x[own], found.select(own), limits))
        return drawn

    def _sizes(self, found: Perturbed) -> Tensor:
        """What share of its budget each member would need for each perturbation, (members, B)."""
        shares = []
        for (_, attack), budget in zip(self.members, self.budgets, strict=True):
            foreign = foreign_to(attack, found)
            shares.append(torch.where(foreign, torch.inf, attack.size(found) / budget))
        return torch.stack(shares)


@dataclass(frozen=True)
class Composed(Attack):
    """Pixels moved, then intensities changed: the second attack sets out from what the first made.

    Whom the first fools by itself is not attacked further, and on whom both leave standing the
    second is tried on the clean image, so that the composition is no softer than it. `broken_by`
    says what it took. A perturbation's size is the larger of the two shares.
    """

    first: tuple[str, FlowAttack]
    second: tuple[str, Attack]
    budgets: tuple[float, float]

    def __post_init__(self) -> None:
        """Refuse what does not move pixels first and change intensities then."""
        moving, changing = (
            part[1] if _is_part(part) else None for part in (self.first, self.second)
        )
        if not isinstance(moving, FlowAttack):
            raise UserError("Composed: first must be an attack that moves pixels, such as flow-pgd")
        if changing is None or isinstance(changing, FlowAttack):
            raise UserError("Composed: second must be an attack that changes intensities, as pgd")
        _check_budgets(self, self.budgets, 2)

    @property
    def threat(self) -> Threat:
        return COMPOSED

    def outcome(
        self, model: nn.Module, x: Tensor, y: Tensor, budget: float, loss: Loss, samples: Samples
    ) -> Perturbed:
        def attacked(place: int, rows: Tensor, start: Tensor) -> tuple[Perturbed, Tensor]:
            _, attack = (self.first, self.second)[place]
            share, here = budget * self.budgets[place], samples.select(rows)
            own = LOSSES[attack.loss_name]
            made = attack.outcome(model, start[rows], y[rows], share, own, here)
            made = attack.within(start[rows], made, share)
            _, fooled = judged(model, made.images, y[rows], loss, here)
            return made, fooled

        everybody = torch.arange(len(x), device=x.device)
        found, fooled = attacked(0, everybody, x)
        samples.credit(self.first[0])
        for start, name in ((found.images.clone(), self._both), (x, self.second[0])):
            rows = (~fooled).nonzero().squeeze(1)
            if len(rows) == 0:
                break
            made, over = attacked(1, rows, start)
            if start is not x:
                made.flow = found.flow[rows]
            found.put(rows[over], made.select(over))
            samples.select(rows[over]).credit(name)
            fooled[rows[over]] = True
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
        """What the first finds, the second on top of it, and the second on the clean images."""

        def found(place: int, start: Tensor) -> Perturbed:
            _, attack = (self.first, self.second)[place]
            share, loss = budget * self.budgets[place], loss_of(attack)
            return attack.find(model, start, y, budget=share, loss=loss, samples=samples)

        moved = found(0, x)
        yield moved
        both = found(1, moved.images)
        yield Perturbed(both.images, moved.flow, both.change)
        yield found(1, x)

    def perturb(
        self, model: nn.Module, x: Tensor, y: Tensor, budget: float, loss: Loss, samples: Samples
    ) -> Tensor:
        return self.outcome(model, x, y, budget, loss, samples).images

    def size(self, found: Perturbed) -> Tensor:
        attacks = (self.first[1], self.second[1])
        shares = [a.size(found) / b for a, b in zip(attacks, self.budgets, strict=True)]
        return torch.maximum(*shares)

    def drawn_in(self, x: Tensor, found: Perturbed, budgets: float | Tensor) -> Perturbed:
        moved = self.first[1].drawn_in(x, found, budgets * self.budgets[0])
        made = self.second[1].drawn_in(moved.images, found, budgets * self.budgets[1])
        return Perturbed(made.images, moved.flow, made.change)

    @property
    def _both(self) -> str:
        return f"{self.first[0]}, then {self.second[0]}"


def foreign_to(attack: Attack, found: Perturbed) -> Tensor:
    """Whose perturbation is none that the attack makes, (B,) bool."""
    return found.changes if isinstance(attack, FlowAttack) else found.moves


def _check_budgets(whole: Attack, budgets: object, count: int) -> None:
    given = budgets if isinstance(budgets, tuple) else ()
    if len(given) != count or not all(0 < budget < torch.inf for budget in given):
        raise UserError(
            f"{type(whole).__name__}: budgets must be one number above 0 for each of its attacks"
        )


def _is_part(part: object) -> bool:
    """Whether it is a name and an attack that can be one of several."""
    match part:
        case (str(), Attack() as attack):
            return attack.shrinks and attack.threat not in (UNION, COMPOSED)
    return False
