"""What to attack with where a flag is up: the attack, and in turn those that its flags call for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

from .attacks import Attack
from .attacks.apgd import APGD
from .attacks.ensemble import Ensemble
from .attacks.smoothed import SmoothedPGD
from .attacks.square import Square
from .trust import ESCALATION, REMEDIES, Flag
from .trust.examination import NORMS
from .trust.indicators import Norm

TIMES = 5  # as many steps, or restarts where an attack has no steps
LONG = 500  # steps of APGD, for attacks that have neither
DRAWS = 20  # passes a gradient where outputs are random, as in AutoAttack's version for them
QUERIES = 2000  # of random search


@dataclass(frozen=True)
class Escalated(Ensemble):
    """An attack and the remedies of its flags; what scouts for the attack scouts for them too."""

    @property
    def scout(self) -> Attack | None:
        return next((a.scout for name, a in self.members if name not in REMEDIES), None)


def remedies(flags: Iterable[Flag]) -> list[str]:
    """Which of REMEDIES these flags call for, in that order."""
    wanted = {remedy for flag in flags for remedy in ESCALATION[flag.name]}
    return [remedy for remedy in REMEDIES if remedy in wanted]


def escalated(attack: Attack, flags: Iterable[Flag], name: str = "attack") -> Attack:
    """The attack under its `name`, and each remedy of the flags on whom those before it leave.

    `eot` comes first: of a model that answers at random, what fools it once may not do so again.
    The attack itself where no flag calls for a remedy, where it has them all already, and in a
    threat other than linf and l2.
    """
    norm = NORMS.get(attack.threat.name)
    if norm is None:
        return attack
    members = attack.members if isinstance(attack, Ensemble) else ((name, attack),)
    known = {repr(member) for _, member in members}
    added = []
    for remedy in remedies(flags):
        member = _remedy(remedy, attack, norm)
        if repr(member) not in known:
            known.add(repr(member))
            added.append((remedy, member))
    if not added:
        return attack
    first = [member for member in added if member[0] == "eot"]
    return Escalated((*first, *members, *(member for member in added if member not in first)))


def _remedy(remedy: str, attack: Attack, norm: Norm) -> Attack:
    if remedy == "more_steps":
        return _longer(attack, norm)
    if remedy == "eot":
        return APGD(norm, samples_per_gradient=DRAWS)
    if remedy == "logit_scale_free_loss":
        return APGD(norm, loss="dlr")
    if remedy == "smoothed_gradient":
        return SmoothedPGD(norm)
    return Square(norm, queries=QUERIES)


def _longer(attack: Attack, norm: Norm) -> Attack:
    """The attack with more steps, or restarts; APGD where it has neither."""
    given = {field.name: getattr(attack, field.name) for field in fields(attack)}
    for name in ("steps", "restarts"):
        if name in given:
            return replace(attack, **{name: TIMES * given[name]})
    return APGD(norm, steps=LONG)
