"""The raw numbers of benchmarks/evaluator.py: a JSON file a part, an entry a model and budget."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from robustbench_gpm.core import UserError
from robustbench_gpm.files import write_text

Entry = dict[str, Any]
PARTS = ("verdict", "curve", "pgd")


def read_parts(folder: Path) -> dict[str, list[Entry]]:
    """What has been measured, part by part, in the order in which it was first."""
    return {part: list(_read(folder, part).values()) for part in PARTS}


def write_part(folder: Path, part: str, entry: Entry) -> None:
    """Keep an entry, in the place of an earlier one of the same model and budgets."""
    kept = _read(folder, part)
    kept[f"{entry['title']}, {budgets_of(entry)}"] = entry
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in kept.items()]
    write_text(folder / f"{part}.json", "{\n" + ",\n".join(lines) + "\n}\n")


def _read(folder: Path, part: str) -> dict[str, Entry]:
    path = folder / f"{part}.json"
    try:
        kept: dict[str, Entry] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        raise UserError(f"{path} is damaged: remove it and measure again") from None
    return kept


def robust(entry: Entry, name: str) -> list[float]:
    """Robust accuracy in per cent at every budget."""
    levels = entry["contenders"][name]["levels"]
    places = range(len(entry["budgets"]))
    return [100 * sum(level > place for level in levels) / len(levels) for place in places]


def standing(entry: Entry, name: str) -> list[float]:
    """Robust accuracy in per cent after each part of a contender."""
    result = entry["contenders"][name]
    left, count = sum(level >= 0 for level in result["levels"]), len(result["levels"])
    after = []
    for stage in result["stages"].values():
        left -= stage["fooled"]
        after.append(100 * left / count)
    return after


def budgets_of(entry: Entry) -> str:
    """The budgets in words."""
    budgets = [f"{255 * budget:.4g}" for budget in entry["budgets"]]
    few = budgets if len(budgets) == 1 else [budgets[0], "...", budgets[-1]]
    return f"{', '.join(few)}/255"


def case_of(entry: Entry) -> str:
    """What an entry is of, in words."""
    if len(entry["budgets"]) > 1:
        return str(entry["title"])
    return f"{entry['title']}, {budgets_of(entry)}"
