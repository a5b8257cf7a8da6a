"""Adversarial training by its flags: which method, against which attack, within which budget."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from typing import Any

from ..attacks import ATTACKS, Attack
from ..attacks.any_loss import USUAL, AnyLoss
from ..attacks.flow import FlowPGD
from ..attacks.pgd import PGD
from ..core import Table, UserError
from ..fields import flag
from .attacked import AdversarialTraining
from .base import Around, Objective
from .free import FreeTraining
from .trades import Trades, check_raises_any_loss

__all__ = ["AdversarialOptions", "AdversarialTraining"]

# Of the literature on CIFAR-10. That for flows is the 0.01, in [-1,1], of the flow-gradient paper
# (Xia & Li 2021, arXiv 2008.12997) at 32 pixels.
USUAL_BUDGETS = {"linf": 8 / 255, "l2": 0.5, "l1": 12.0, "flow": 0.155, "flow-l2": 0.155}

METHODS = ("trades", "fgsm-rs", "free")  # that train in a way of their own, by pgd unless told
ADVERSARIES: Table[Attack] = Table("attack", {"flow": ATTACKS["flow-pgd"], **ATTACKS})
ASKED: Table[Attack] = Table("attack", {**dict.fromkeys(METHODS, ATTACKS["pgd"]), **ADVERSARIES})

# Whose a flag is, where it isn't everybody's.
EVERY_ATTACK = ("trades", *ADVERSARIES)
USERS = {
    "adversarial_attack": METHODS,
    "adversarial_steps": EVERY_ATTACK,  # the two others make one
    "trades_beta": ("trades",),
    "free_replays": ("free",),
}


@dataclass(frozen=True)
class AdversarialOptions(Around):
    """Flags that say which attack training defends against, and how."""

    adversarial: str | None = flag(
        None,
        "adversarial training: by TRADES (trades), by one step from a random start (fgsm-rs), by "
        "the gradients of training itself (free), on flows (flow), or on images that this attack "
        f"has perturbed: {', '.join(ATTACKS)}",
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
        None,
        "adversarial training: step size, in budgets; by default the attack's own, 1.25 for "
        "fgsm-rs and 1 for free",
        above=0,
    )
    adversarial_attack: str | None = flag(
        None, "trades, fgsm-rs, free: attack that raises the loss; by default pgd"
    )
    trades_beta: float = flag(6.0, "trades: weight of the divergence", at_least=0)
    free_replays: int = flag(
        8, "free: times each batch is trained on; the epochs are divided by it", at_least=1
    )

    def __post_init__(self) -> None:
        """Raise UserError for what cannot be meant."""
        super().__post_init__()
        self._check_flags()
        if self.adversarial is not None:
            self.attack()
            self.budget  # noqa: B018

    @property
    def active(self) -> bool:
        return self.adversarial is not None

    @property
    def label(self) -> str:
        return "-".join(filter(None, ("at", self.adversarial, self.adversarial_attack)))

    @property
    def replays(self) -> int:
        """How often in a row each batch is trained on."""
        return self.free_replays if self.adversarial == "free" else 1

    def around(self, inner: Objective) -> Objective:
        attack, budget = self.attack(), self.budget
        if self.adversarial == "trades":
            return Trades(attack, budget, self.trades_beta, inner)
        if self.adversarial == "free":
            assert isinstance(attack, PGD | FlowPGD)
            return FreeTraining(attack, budget, inner, self.free_replays)
        return AdversarialTraining(attack, budget, inner, as_trained=self.adversarial == "fgsm-rs")

    @property
    def budget(self) -> float:
        """What the attack may spend."""
        given = self.adversarial_budget
        return self._usual_budget() if given is None else given

    def attack(self) -> Attack:
        """The attack to train against. Raises UserError for a name or an option it hasn't got."""
        name = self.adversarial_attack or self.adversarial or ""
        attack = ADVERSARIES[name] if self.adversarial_attack else ASKED[name]
        if isinstance(attack, AnyLoss) and attack.loss != USUAL:
            raise UserError(
                f"{name} is told to raise '{attack.loss}', and attacks in training raise what "
                "training lowers: name one without a loss of its own, such as pgd or flow-pgd"
            )
        if self.adversarial == "trades":
            check_raises_any_loss(name, attack)
        if self.adversarial in ("fgsm-rs", "free"):
            return self._single_step(name, attack)
        asked = {"steps": self.adversarial_steps, "step_size": self.adversarial_step_size}
        changes = {option: value for option, value in asked.items() if value is not None}
        for option in changes:
            if option not in {f.name for f in dataclasses.fields(attack)}:
                raise UserError(
                    f"the attack '{name}' has no {option.replace('_', ' ')}: "
                    f"leave out --adversarial_{option}"
                )
        # Training wants the worst image of the ball, not the first that fools.
        return _with(attack, **changes, early_stop=False)

    def _single_step(self, name: str, attack: Attack) -> PGD | FlowPGD:
        """One step of fixed size from anywhere in the ball, 1.25 budgets as by Wong et al. 2020."""
        if not isinstance(attack, PGD | FlowPGD):
            raise UserError(
                f"--adversarial {self.adversarial} perturbs as pgd, pgd-l2 or flow-pgd do, not as "
                f"{name}: name one of these by --adversarial_attack"
            )
        usual = 1.0 if self.adversarial == "free" else 1.25
        size = self.adversarial_step_size or usual
        single = {"steps": 1, "step_size": size, "rule": "fixed", "momentum": 0.0, "restarts": 1}
        changed = _with(attack, **single, random_start=True, early_stop=False)
        assert isinstance(changed, PGD | FlowPGD)
        return changed

    def _usual_budget(self) -> float:
        threat = self.attack().threat.name
        if threat not in USUAL_BUDGETS:
            raise UserError(
                f"--adversarial {self.adversarial} needs --adversarial_budget: there is no usual "
                f"one for {threat}"
            )
        return USUAL_BUDGETS[threat]

    def _check_flags(self) -> None:
        """Raise UserError for the first flag that the method asked for has no use for."""
        if self.adversarial is not None:
            ASKED[self.adversarial]
        for f in dataclasses.fields(self):
            if getattr(self, f.name) == f.default:
                continue
            if self.adversarial is None:
                raise UserError(f"--{f.name} needs --adversarial, which says what to train against")
            if f.name in USERS and self.adversarial not in USERS[f.name]:
                raise UserError(
                    f"--{f.name} means nothing to --adversarial {self.adversarial}: leave it out"
                )


def _with(attack: Attack, **changes: Any) -> Attack:
    """The attack with these of its options changed, as far as it has them."""
    known = {f.name for f in dataclasses.fields(attack)}
    return replace(attack, **{name: value for name, value in changes.items() if name in known})
