"""Attacks by what they are called: ours, and those of torchattacks and foolbox."""

from __future__ import annotations

from ..core import UserError
from .base import Attack

LIBRARIES = ("torchattacks", "foolbox")


def attack_named(name: str) -> Attack:
    """The attack of that name: an entry of the table, `torchattacks:PGDL2`, `foolbox:LinfPGD`.

    A norm other than the class's first is written behind it: `torchattacks:APGD-l2`. Raises
    UserError, with what comes closest, for a name there is no attack of, and for those classes of
    the two libraries that cannot be used here. The libraries are imported when they are asked for.
    """
    library, colon, rest = name.partition(":")
    if not colon:
        from . import ATTACKS  # noqa: PLC0415  the table may one day hold what this module makes

        return ATTACKS[name]
    known, _, norm = rest.partition("-")
    if library == "torchattacks":
        from .by_torchattacks import by_torchattacks  # noqa: PLC0415  slow to import

        return by_torchattacks(known, norm or None)
    if library == "foolbox":
        from .by_foolbox import by_foolbox  # noqa: PLC0415  slow to import

        return by_foolbox(known, norm or None)
    raise UserError(f"unknown attack '{name}': before a colon stands {' or '.join(LIBRARIES)}")
