"""Which attacks are asked for, with which hyper-parameters and over which budgets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .attacks import ATTACKS, Attack
from .attacks.named import attack_named
from .attacks.options import changed, takes, told
from .config import EvaluateConfig
from .core import UserError
from .records import FOOLED
from .sweep import AttackPlan
from .tasks import Task


@dataclass(frozen=True)
class Asked:
    """An attack by its name; no budgets are the attack's own range, which may need the images."""

    name: str
    attack: Attack
    budgets: tuple[float, ...]

    def plan(self, task: Task, height: int, width: int, frames: int = 1) -> AttackPlan:
        """What to do in a task on images of that size, or on clips of so many frames.

        Raises UserError for a loss that the task has not got.
        """
        budgets = self.budgets or self.attack.default_budgets(height, width)
        attack = self.attack
        if takes(attack, "frames"):
            attack = changed(attack, "frames", str(frames))
        return AttackPlan(self.name, told(attack, self.name, task), budgets)


def asked_for(config: EvaluateConfig) -> list[Asked]:
    """What --attack, --set and --budgets ask for.

    Raises UserError for an unknown name, a hyper-parameter that no attack has, and a bad budget.
    """
    names = list(dict.fromkeys(config.attack))
    if not names:
        raise UserError(f"--attack needs at least one of {', '.join(ATTACKS)}")
    attacks = _with_options({name: attack_named(name) for name in names}, config.set)
    listed = [str(budget) for budget in config.budgets]  # a YAML file may hold plain numbers
    return [Asked(name, attack, _budgets(name, attack, listed)) for name, attack in attacks.items()]


def _with_options(attacks: dict[str, Attack], items: Sequence[str]) -> dict[str, Attack]:
    for item in items:
        left, equals, value = item.partition("=")
        owner, _, option = left.rpartition(".")
        if not equals or not option:
            raise UserError(f"--set {item} is not of the form steps=50 or flow-pgd.steps=50")
        if owner and owner not in attacks:
            raise UserError(f"--set {item}: {owner} is not among the attacks asked for by --attack")
        chosen = [name for name in attacks if owner in ("", name) and takes(attacks[name], option)]
        if not chosen:
            nobody = f"{owner} has no" if owner else "no attack asked for has"
            raise UserError(f"--set {item}: {nobody} {option}")
        attacks |= {name: changed(attacks[name], option, value) for name in chosen}
    return attacks


def _budgets(name: str, attack: Attack, listed: Sequence[str]) -> tuple[float, ...]:
    """The budgets given to this attack, ascending; none where it is given none."""
    asked: list[str] = []
    for item in listed:
        owner, separator, own = item.rpartition("=")
        if separator:
            attack_named(owner)
        if owner in ("", name):
            asked += own.split(",")
    chosen = {attack.threat.read(text, "--budgets") for text in asked}
    if len({FOOLED.format(name, budget) for budget in chosen}) < len(chosen):
        raise UserError("--budgets must differ in their first six digits: leave out one of a pair")
    return tuple(sorted(chosen))
