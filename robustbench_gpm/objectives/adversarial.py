"""Adversarial training (Madry et al. 2018, arXiv 1706.06083): the objective at attacked images."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..attacks import ATTACKS, Attack
from ..core import Loss, Samples, UserError
from ..fields import flag
from .base import Around, Objective

# Of the literature on CIFAR-10. That for flows is the 0.01, in [-1,1], of the flow-gradient paper
# (Xia & Li 2021, arXiv 2008.12997) at 32 pixels.
USUAL_BUDGETS = {"linf": 8 / 255, "l2": 0.5, "l1": 12.0, "flow": 0.155, "flow-l2": 0.155}


@dataclass(frozen=True)
class AdversarialOptions(Around):
    """Flags that say which attack training defends against."""

    adversarial: str | None = flag(
        None, f"adversarial training: attack the images by {', '.join(ATTACKS)}"
    )
    adversarial_budget: float | None = flag(
        None,
        "adversarial training: budget in the attack's unit; by default 8/255 for linf, 0.5 for l2, "
        "12 for l1 and 0.155 pixels for flows",
        at_least=0,
    )
    adversarial_steps: int | None = flag(
        None, "adversarial training: steps of the attack; by default its own number", at_least=1
    )
    adversarial_step_size: float | None = flag(
        None, "adversarial training: step size, in budgets; by default the attack's own", above=0
    )

    def __post_init__(self) -> None:
        """Raise UserError for what cannot be meant."""
        super().__post_init__()
        chosen = (self.adversarial_budget, self.adversarial_steps, self.adversarial_step_size)
        if self.adversarial is None and chosen != (None, None, None):
            raise UserError(
                "--adversarial_budget, --adversarial_steps and --adversarial_step_size need "
                "--adversarial"
            )
        if self.adversarial is not None and self.adversarial_budget is None:
            self._usual_budget()

    @property
    def active(self) -> bool:
        return self.adversarial is not None

    @property
    def label(self) -> str:
        return f"at-{self.adversarial}"

    def around(self, inner: Objective) -> Objective:
        return AdversarialTraining(self.attack(), self.budget, inner)

    @property
    def budget(self) -> float:
        """What the attack may spend."""
        given = self.adversarial_budget
        return self._usual_budget() if given is None else given

    def _usual_budget(self) -> float:
        threat = self.attack().threat.name
        if threat not in USUAL_BUDGETS:
            raise UserError(
                f"--adversarial {self.adversarial} needs --adversarial_budget: there is no usual "
                f"one for {threat}"
            )
        return USUAL_BUDGETS[threat]

    def attack(self) -> Attack:
        """The attack to train against. Raises UserError for a name or an option it hasn't got."""
        attack = ATTACKS[self.adversarial or ""]
        asked = {"steps": self.adversarial_steps, "step_size": self.adversarial_step_size}
        changes = {name: value for name, value in asked.items() if value is not None}
        known = {field.name for field in dataclasses.fields(attack)}
        for name in changes:
            if name not in known:
                raise UserError(
                    f"the attack '{self.adversarial}' has no {name.replace('_', ' ')}: "
                    f"leave out --adversarial_{name}"
                )
        # Training wants the worst image of the ball, not the first that fools.
        whole = {"early_stop": False} if "early_stop" in known else {}
        return replace(attack, **changes, **whole)


@dataclass(frozen=True)
class AdversarialTraining:
    """`inner` at images that `attack` has perturbed, so that it composes with every penalty.

    The attack sees the model in evaluation mode: the batch norms' statistics are those of the
    attacked images that the weights are then trained on, and of no other.
    """

    attack: Attack
    budget: float
    inner: Objective

    def backward(self, model: nn.Module, x: Tensor, y: Tensor, loss: Loss) -> dict[str, Tensor]:
        """See `Objective.backward`; logs what the inner objective logs."""
        seed = int(torch.randint(2**62, ()))
        samples = Samples(range(len(x)), seed)
        attacked = self.attack(model, x, y, budget=self.budget, loss=loss, samples=samples)
        return self.inner.backward(model, attacked, y, loss)
