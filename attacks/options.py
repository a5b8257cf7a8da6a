"""Hyper-parameters by name: what an attack takes, and the attack with one of them changed."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, Literal, get_origin, get_type_hints

from ..core import UserError
from .base import Attack

_OPTIONAL = {int | None: int, float | None: float}
_YES = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def takes(attack: Attack, option: str) -> bool:
    """Whether the attack, or one of the attacks it is made of, has that hyper-parameter."""
    return option in _plain(attack) or any(takes(part, option) for part in _parts(attack))


def changed(attack: Attack, option: str, value: str) -> Attack:
    """The attack with a hyper-parameter set, and so in each of its parts that has it.

    Raises UserError for a value that it cannot have.
    """
    changes: dict[str, Any] = {}
    own = _plain(attack)
    if option in own:
        changes[option] = _read(type(attack).__name__, option, value, own[option])
    for field in fields(attack):
        given = getattr(attack, field.name)
        if isinstance(given, tuple):
            changes[field.name] = _in_parts(given, option, value)
    return replace(attack, **changes) if changes else attack


def _in_parts(value: Any, option: str, text: str) -> Any:
    if isinstance(value, tuple):
        return tuple(_in_parts(part, option, text) for part in value)
    return changed(value, option, text) if isinstance(value, Attack) else value


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
    return {n: k for n, k in kinds.items() if k in (bool, int, float) or get_origin(k) is Literal}


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
