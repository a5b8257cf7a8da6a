"""Hyper-parameters by name, and losses: what an attack takes, and the attack with it changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, Literal, Protocol, get_origin, get_type_hints

from ..core import Loss, Scheduled, Table, UserError
from .any_loss import USUAL, AnyLoss
from .base import Attack

_OPTIONAL = {int | None: int, float | None: float}
NAMED = "loss"  # the one hyper-parameter that is a word of the task's, and not of the attack's
_YES = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def takes(attack: Attack, option: str) -> bool:
    """Whether the attack, or one of the attacks it is made of, has that hyper-parameter."""
    return option in _plain(attack) or any(takes(part, option) for part in _parts(attack))


def changed(attack: Attack, option: str, value: str) -> Attack:
    """The attack with a hyper-parameter set, and so in each of its parts that has it.

    Raises UserError for a value that it cannot have.
    """

    def set_here(one: Attack) -> Attack:
        own = _plain(one)
        if option not in own:
            return one
        return replace(one, **{option: _read(type(one).__name__, option, value, own[option])})

    return _everywhere(attack, set_here)


class HasLosses(Protocol):
    """What must be known of a task to tell attacks what to raise on it."""

    @property
    def name(self) -> str: ...

    @property
    def losses(self) -> Table[Loss]:
        """What an attack may be told to raise."""
        ...

    @property
    def usual_loss(self) -> str | None:
        """What it raises untold; None where that is the attack's own."""
        ...


def told(attack: Attack, name: str, task: HasLosses) -> Attack:
    """The attack of that name, and all its parts, with the losses they raise on that task.

    Raises UserError for a loss that the task has not got, or that an attack cannot follow.
    """

    def tell(one: Attack) -> Attack:
        if not isinstance(one, AnyLoss):
            return one
        loss = task.usual_loss if one.loss == USUAL else one.loss
        if loss is None:
            return one
        if loss not in task.losses:
            raise UserError(
                f"{name} is to raise a loss called '{loss}', and {task.name} has none: choose from "
                f"{', '.join(task.losses)}"
            )
        if one.compares and isinstance(task.losses[loss], Scheduled):
            raise UserError(
                f"{name} holds the losses of its steps against each other, and '{loss}' changes "
                "from step to step: choose another loss, or an attack such as pgd or flow-pgd"
            )
        return replace(one, loss=loss)

    return _everywhere(attack, tell)


def _everywhere(attack: Attack, change: Callable[[Attack], Attack]) -> Attack:
    """`change` made to each of the attacks that this one is made of, and then to itself."""

    def within(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(within, value))
        return _everywhere(value, change) if isinstance(value, Attack) else value

    given = {f.name: getattr(attack, f.name) for f in fields(attack)}
    made_of = {name: within(value) for name, value in given.items() if isinstance(value, tuple)}
    return change(replace(attack, **made_of) if made_of else attack)


def innermost(attack: Attack) -> list[Attack]:
    """The attacks that it comes down to: itself, where it is not made of others."""
    parts = _parts(attack)
    return [one for part in parts for one in innermost(part)] if parts else [attack]


def _parts(attack: Attack) -> list[Attack]:
    """The attacks that this one is made of."""
    found: list[Attack] = []
    stack: list[Any] = [getattr(attack, field.name) for field in fields(attack)]
    while stack:
        value = stack.pop()
        if isinstance(value, tuple):
            stack.extend(value)
        elif isinstance(value, Attack):
            found.append(value)
    return found


def _plain(attack: Attack) -> dict[str, Any]:
    """The hyper-parameters that are a number, a word or a yes, with their types."""
    hints = get_type_hints(type(attack))
    kinds = {f.name: _OPTIONAL.get(hints[f.name], hints[f.name]) for f in fields(attack)}
    return {
        name: kind
        for name, kind in kinds.items()
        if kind in (bool, int, float) or get_origin(kind) is Literal or name == NAMED
    }


def _read(attack: str, option: str, text: str, hint: Any) -> bool | int | float | str:
    try:
        if hint is bool:
            return _YES[text.lower()]
        if hint is int:
            return int(text)
        if hint is float:
            numerator, _, denominator = text.partition("/")
            return float(numerator) / float(denominator or 1)
    except (KeyError, ValueError, ZeroDivisionError):
        kind = {bool: "true or false", int: "a whole number", float: "a number"}[hint]
        raise UserError(f"{attack}: {option} must be {kind}, not '{text}'") from None
    return text  # one of a few words, which the attack knows
