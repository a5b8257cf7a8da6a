"""AutoAttack (Croce & Hein 2020, arXiv 2003.01690; l1: 2021, arXiv 2103.01208).

The standard verdict of the field: four attacks in turn, each on the clean images of the samples
that those before it left standing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

from .apgd import APGD, TargetedAPGD
from .base import Attack
from .ensemble import Ensemble
from .fab import FAB, TargetedFAB
from .square import Square

Norm = Literal["linf", "l2", "l1"]
Members = tuple[tuple[str, Attack], ...]
EOT = 20  # passes a gradient of `rand`


def standard(norm: Norm = "linf", *, parity: bool = False) -> Ensemble:
    """APGD on the cross-entropy, targeted APGD, targeted FAB, Square; 100 steps, 5000 queries.

    In l1 the first makes five restarts and the second looks at five classes (2021, section 5).
    `parity` follows the authors' code where ours does better or the same for less.
    """
    of_l1 = norm == "l1"
    members: Members = (
        ("apgd-ce", APGD(norm, restarts=5 if of_l1 else 1, parity=parity)),
        ("apgd-t", TargetedAPGD(norm, targets=5 if of_l1 else 9, parity=parity)),
        ("fab-t", TargetedFAB(norm, parity=parity)),
        ("square", Square(norm)),
    )
    return Ensemble(members)


def plus(norm: Norm = "linf") -> Ensemble:
    """The standard's attacks with five restarts, and untargeted APGD-DLR and FAB."""
    members: Members = (
        ("apgd-ce", APGD(norm, restarts=5)),
        ("apgd-dlr", APGD(norm, restarts=5, loss="dlr")),
        ("fab", FAB(norm, restarts=5)),
        ("square", Square(norm)),
        ("apgd-t", TargetedAPGD(norm, targets=5 if norm == "l1" else 9)),
        ("fab-t", TargetedFAB(norm)),
    )
    return Ensemble(members)


def rand(norm: Norm = "linf") -> Ensemble:
    """For models that answer at random: both APGDs, each gradient the mean of twenty."""
    members: Members = (
        ("apgd-ce", APGD(norm, samples_per_gradient=EOT)),
        ("apgd-dlr", APGD(norm, loss="dlr", samples_per_gradient=EOT)),
    )
    return Ensemble(members)


VERSIONS: dict[str, Callable[[Norm], Ensemble]] = {
    "autoattack": standard,
    "autoattack-parity": partial(standard, parity=True),
    "autoattack-plus": plus,
    "autoattack-rand": rand,
}
