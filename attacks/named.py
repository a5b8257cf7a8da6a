"""Attacks by what they are called: ours, other libraries', and several of them together."""

from __future__ import annotations

from ..core import UserError
from .base import Attack, FlowAttack
from .union import Composed, Union

FORMS = ("torchattacks", "foolbox", "union", "composed")


def attack_named(name: str) -> Attack:
    """The attack of that name: an entry of the table, `torchattacks:PGDL2`, `foolbox:LinfPGD`.

    A norm other than the class's first is written behind it: `torchattacks:APGD-l2`.
    `union:pgd@8/255+flow-pgd@1` is the worst of several, each with its own budget, and
    `composed:flow-pgd@1+pgd@8/255` deforms first and then perturbs. Raises UserError, with what
    comes closest, for a name there is no attack of, and for those classes of the two libraries that
    cannot be used here. The libraries are imported when they are asked for.
    """
    form, colon, rest = name.partition(":")
    if not colon:
        from . import ATTACKS  # noqa: PLC0415  the table may one day hold what this module makes

        return ATTACKS[name]
    if form in ("union", "composed"):
        return _together(form, name, rest)
    known, _, norm = rest.partition("-")
    if form == "torchattacks":
        from .by_torchattacks import by_torchattacks  # noqa: PLC0415  slow to import

        return by_torchattacks(known, norm or None)
    if form == "foolbox":
        from .by_foolbox import by_foolbox  # noqa: PLC0415  slow to import

        return by_foolbox(known, norm or None)
    raise UserError(f"unknown attack '{name}': before a colon stands {' or '.join(FORMS)}")


def _together(form: str, name: str, listed: str) -> Attack:
    """A union or a composition of what is listed as attack@budget+attack@budget."""
    parts, budgets = [], []
    for item in listed.split("+"):
        part, at, budget = item.rpartition("@")
        if not at:
            raise UserError(
                f"{name}: each of its attacks needs a budget of its own, as in "
                f"{form}:flow-pgd@1+pgd@8/255"
            )
        attack = attack_named(part)
        parts.append((part, attack))
        budgets.append(attack.threat.read(budget))
    if form == "union":
        return Union(tuple(parts), tuple(budgets))
    if len(parts) != 2 or not isinstance(parts[0][1], FlowAttack):
        raise UserError(
            f"{name}: a composition is an attack that moves pixels, then one that changes "
            "intensities, as in composed:flow-pgd@1+pgd@8/255"
        )
    return Composed((parts[0][0], parts[0][1]), parts[1], (budgets[0], budgets[1]))
