"""Dataclass fields that are flags too: default, help and range in one place."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .core import UserError


def flag(
    default: Any,
    text: str,
    *,
    at_least: float = -math.inf,
    above: float = -math.inf,
    at_most: float = math.inf,
) -> Any:
    """A dataclass field that is also a flag: default, help, and the range of its numbers."""
    limits = {"at least": at_least, "above": above, "at most": at_most}
    stated = {name: limit for name, limit in limits.items() if math.isfinite(limit)}
    return dataclasses.field(default=default, metadata={"help": text, "limits": stated})


def check_ranges(config: Any) -> None:
    """Raise UserError naming the first flag of a dataclass whose number is out of its range."""
    for f in dataclasses.fields(config):
        values = getattr(config, f.name)
        for value in values if isinstance(values, tuple) else (values,):
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                _check(f.name, value, f.metadata.get("limits", {}))


def _check(name: str, value: float, limits: Mapping[str, float]) -> None:
    fits = {
        "at least": lambda limit: value >= limit,
        "above": lambda limit: value > limit,
        "at most": lambda limit: value <= limit,
    }
    for word, limit in limits.items():
        if not fits[word](limit):
            raise UserError(f"--{name} must be {word} {limit:g}, not {value:g}")
    if math.isnan(value):
        raise UserError(f"--{name} must be a number, not NaN")


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Flags and their values in the form that JSON holds: lists for tuples, text for paths."""
    return {
        name: list(v) if isinstance(v, tuple) else str(v) if isinstance(v, Path) else v
        for name, v in values.items()
    }
