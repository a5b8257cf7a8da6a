"""Attacks in turn on the same images, chunk by chunk: passes counted, seconds taken.

A contender is made ready once (its clean predictions, its copies of the model) and then run on
every chunk of the images in turn with the others: A B A B, so that a slow spell hits all alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from robustbench_gpm.attacks import Attack
from robustbench_gpm.evaluator import Evaluator, Subject
from robustbench_gpm.sweep import AttackPlan, Sweep

A = TypeVar("A")


@dataclass
class Tally:
    """Samples that went forwards through a model, and gradients that came back to its output."""

    forwards: int = 0
    backwards: int = 0


class Counted(nn.Module):
    """A model whose every pass is added to a tally."""

    def __init__(self, model: nn.Module, tally: Tally) -> None:
        super().__init__()
        self.model, self.tally = model, tally
        self.coarse = bool(getattr(model, "coarse", False))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B,K) of images x (B,C,H,W)."""
        logits: Tensor = self.model(x)
        self.tally.forwards += len(x)
        if logits.requires_grad:
            logits.register_hook(self._came_back)  # type: ignore[no-untyped-call]
        return logits

    def _came_back(self, gradient: Tensor) -> None:
        self.tally.backwards += len(gradient)


@dataclass
class Stage:
    """A part of an attack: what it fooled first, and its cost where that can be told apart."""

    fooled: int = 0
    forwards: int | None = None
    backwards: int | None = None
    seconds: float | None = None


@dataclass
class Found:
    """levels (B,): the place of the smallest budget that fooled, their number where none did, -1
    where the model is wrong without an attack. stages: by name, in the order they were run.
    """

    levels: Tensor
    stages: dict[str, Stage] = field(default_factory=dict)


class Contender(Protocol):
    """Ready to attack the rows (B,) of the data, again and again."""

    tally: Tally
    search: dict[str, object]  # what is told of the copies it searches on

    def __call__(self, rows: Tensor) -> Found: ...


class Here:
    """An attack of this suite as `evaluate.py` runs it: on copies, judged by the model itself."""

    def __init__(
        self,
        subject: Subject,
        device: torch.device,
        attack: Attack,
        name: str,
        budgets: Sequence[float],
        chunk: int,
    ) -> None:
        self.tally, self.subject = Tally(), subject
        evaluator = Evaluator(subject, device, batch_size=chunk)
        self.prediction, self.search = evaluator.prediction, evaluator.search_facts
        self.tally.forwards += len(self.prediction)
        verifier = evaluator.verifier
        verifier.ladder = [Counted(model, self.tally) for model in verifier.ladder]
        verifier.model = verifier.ladder[-1]
        self.plan = AttackPlan(name, attack, tuple(budgets))
        self.sweep = Sweep(self.plan, verifier, subject.split, device, seed=0)

    def __call__(self, rows: Tensor) -> Found:
        right = self.prediction[rows] == self.subject.split.labels[rows]
        levels = torch.full_like(rows, -1)
        trails = self.sweep.run(rows[right]) if bool(right.any()) else []
        levels[right] = torch.tensor([trail.lowest_level for trail in trails], dtype=torch.int64)
        members = [name for name, _ in getattr(self.plan.attack, "members", ())]
        by = [trail.broken_by for trail in trails if trail.broken_by is not None]
        order = dict.fromkeys([name for name in by if name not in members] + members)
        return Found(levels, {name: Stage(by.count(name)) for name in order})


def lowered(given: A, limits: Mapping[str, int]) -> A:
    """The attack, and those within it, with no more of each hyper-parameter than the limit."""
    thing: Any = given
    if isinstance(thing, tuple):
        thing = tuple(lowered(part, limits) for part in thing)
    elif is_dataclass(thing) and not isinstance(thing, type):
        values = {one.name: getattr(thing, one.name) for one in fields(thing)}
        changes = {
            name: min(value, limits[name]) if name in limits else lowered(value, limits)
            for name, value in values.items()
        }
        thing = replace(thing, **changes)
    changed: A = thing
    return changed


def duel(
    makers: Mapping[str, Callable[[], Contender]],
    rows: Tensor,
    chunk: int,
    device: torch.device,
) -> dict[str, dict[str, Any]]:
    """Run every contender in turn on every `chunk` of the rows (N,).

    By name: seconds, forwards and backwards a chunk, of which the preparation's seconds are shared
    out equally and its passes are the first's; levels (N,) and stages as in `Found`.
    """
    ready: dict[str, Contender] = {}
    results: dict[str, dict[str, Any]] = {}
    for name, make in makers.items():
        began = clock(device)
        ready[name] = make()
        results[name] = {
            "search": ready[name].search,
            "preparation": clock(device) - began,
            "seconds": [],
            "forwards": [],
            "backwards": [],
            "stages": {},
            "levels": [],
        }
    chunks = rows.split(chunk)
    for part in chunks:
        for name, contender in ready.items():
            result, tally = results[name], contender.tally
            began = clock(device)
            found = contender(part)
            share = result["preparation"] / len(chunks)
            result["seconds"].append(clock(device) - began + share)
            for kind in ("forwards", "backwards"):
                result[kind].append(getattr(tally, kind))
                setattr(tally, kind, 0)
            result["levels"] += found.levels.tolist()
            _add(result["stages"], found.stages)
    return results


def _add(total: dict[str, dict[str, Any]], stages: Mapping[str, Stage]) -> None:
    for name, stage in stages.items():
        so_far = total.setdefault(name, {})
        for one in fields(stage):
            value, old = getattr(stage, one.name), so_far.get(one.name)
            so_far[one.name] = value if old is None else old + value


def clock(device: torch.device) -> float:
    """Seconds, when all that the device was asked for is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
