"""One attack over a whole range of budgets, for about the cost of one budget.

A sample is attacked at the largest budget first. What fools it there is drawn back into smaller
budgets for as long as it still fools; then the attack is made afresh just below. It ends at the
first budget that the sample withstands, and so a sample withstands at most one attack: to be fooled
is cheap, since an attack stops there, and to withstand is what costs.

Most samples that withstand do so by far. After the attack's first step at the full budget a sample
that would need, to first order, a further HOPELESS budgets is not attacked on.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from .attacks import Attack
from .core import Samples
from .datasets import Split
from .showcase import Candidate
from .verdict import SLACK, Attempt, Verifier

# None of the images that AutoAttack broke missed more than 1.2 budgets after the first step, on two
# robust networks at five budgets; up to two thirds of those that it did not break missed over 1.5.
HOPELESS = 1.5
VANISHED = 1e6  # beyond it there is no gradient to speak of, and nothing to be said by it

SCOUT = "first step"  # what broke a sample that one whole step of the attack was enough for


@dataclass(frozen=True)
class AttackPlan:
    """An attack by its name in the table, with ascending budgets in its threat's unit."""

    name: str
    attack: Attack
    budgets: tuple[float, ...]


@dataclass(eq=False)
class Trail:
    """One sample on its way down the budgets (or, in a sweep that shares no work, up them).

    Levels count the budgets: `level` is the one to try next, None at the end; `lowest_level` the
    smallest that has fooled it, as many as there are budgets where none has.
    """

    row: int
    x: Tensor
    y: Tensor
    level: int | None
    scout: bool
    lowest_level: int
    broken_by: str | None = None
    forwards: int = 0
    backwards: int = 0
    seconds: float = 0.0
    found: Candidate | None = field(default=None, repr=False)


class Sweep:
    """Takes batches of samples through the budgets of one plan."""

    def __init__(
        self,
        plan: AttackPlan,
        verifier: Verifier,
        split: Split,
        device: torch.device,
        *,
        seed: int,
        shared: bool = True,
        gated: bool = True,
    ) -> None:
        """`shared` False: every budget is attacked afresh, whatever happened at the others.

        `gated` False: nobody is given up as hopeless, as where gradients are not to be trusted.
        """
        self.plan, self.verifier, self.split, self.device = plan, verifier, split, device
        self.seed, self.shared, self.gated = seed, shared, gated
        self.attack = plan.attack
        if shared and len(plan.budgets) > 1 and plan.attack.minimum_norm:
            self.attack = _to_the_end(plan.attack)

    def run(self, rows: Tensor) -> list[Trail]:
        """The finished trails of the samples in `rows` (B,), in that order."""
        x, y = self.split.batch(rows)
        x, y = x.to(self.device), y.to(self.device)
        top = len(self.plan.budgets) - 1
        scout = self.shared and self.plan.attack.scout is not None
        trails = [
            Trail(row, x[i], y[i], top if self.shared else 0, scout, top + 1)
            for i, row in enumerate(rows.tolist())
        ]
        under_way = list(trails)
        while under_way:
            stage = max((t.scout, t.level or 0) for t in under_way)
            self._step([t for t in under_way if (t.scout, t.level or 0) == stage], *stage)
            under_way = [t for t in under_way if t.level is not None]
        return trails

    def _step(self, group: Sequence[Trail], scout: bool, level: int) -> None:
        """One attack, at one budget, on the trails that have come to it."""
        began = time.perf_counter()
        plan = self.plan
        attack = plan.attack.scout if scout and plan.attack.scout else self.attack
        x, y = torch.stack([t.x for t in group]), torch.stack([t.y for t in group])
        seed = zlib.crc32(f"{self.seed}/{plan.name}/{scout}/{plan.budgets[level]!r}".encode())
        samples = Samples(self.split.index[[t.row for t in group]], seed)
        outcome = self.verifier.attempt(attack, plan.budgets[level], x, y, samples)
        fooled = (outcome.label != y) & self._within(outcome.size, level)
        levels = torch.where(fooled, level, len(plan.budgets)).cpu()
        if self.shared and attack.shrinks:
            self._draw_in(attack, x, y, outcome, levels, samples)
        hopeless = torch.zeros_like(fooled)
        if scout and self.gated and attack.threat.name in ("linf", "l2"):
            left = ~fooled
            reached, part = outcome.found.images[left], samples.select(left)
            missing = self.verifier.missing(attack, plan.budgets[level], reached, y[left], part)
            hopeless[left] = (missing > HOPELESS) & (missing < VANISHED)
        seconds = time.perf_counter() - began
        passes = samples.forwards + samples.backwards
        for i, (trail, by) in enumerate(zip(group, samples.broken_by, strict=True)):
            trail.forwards += int(samples.forwards[i])
            trail.backwards += int(samples.backwards[i])
            trail.seconds += seconds * int(passes[i]) / int(passes.sum())
            if levels[i] < trail.lowest_level:
                trail.lowest_level = int(levels[i])
                trail.broken_by = SCOUT if scout else by or plan.name
                trail.found = self._candidate(trail, outcome, i)
            trail.level = None if hopeless[i] else self._next(trail, bool(fooled[i]))
            trail.scout = False

    def _within(self, size: Tensor, level: int) -> Tensor:
        """Which sizes (B,) are inside the budget, but for float32's rounding."""
        return size <= self.plan.budgets[level] * (1 + SLACK) + SLACK

    def _draw_in(
        self,
        attack: Attack,
        x: Tensor,
        y: Tensor,
        outcome: Attempt,
        levels: Tensor,
        samples: Samples,
    ) -> None:
        """Find by bisection the smallest budgets that each fooling perturbation can be drawn into.

        `levels` (B,) and `outcome` are brought up to date.
        """
        budgets = torch.tensor(self.plan.budgets, dtype=torch.float64)
        standing = torch.full_like(levels, -1)  # the largest level known not to do
        free = torch.searchsorted(budgets * (1 + SLACK) + SLACK, outcome.size.double().cpu())
        fooled = levels < len(budgets)
        levels[fooled] = torch.minimum(levels, free)[fooled]
        if attack.minimum_norm:
            return
        while bool((open_ := fooled & (levels - standing > 1)).any()):
            middle = (levels[open_] + standing[open_]) // 2
            part = samples.select(open_)
            here = open_.to(x.device)
            radius = budgets[middle].to(x)
            drawn = self.verifier.drawn_in(attack, radius, x[here], outcome.select(here), part)
            fits = drawn.label != y[here]
            rows = open_.nonzero().flatten()
            done = fits.cpu()
            outcome.put(here.nonzero().flatten()[fits], drawn.select(fits))
            levels[rows[done]] = middle[done]
            standing[rows[~done]] = middle[~done]

    def _next(self, trail: Trail, fooled: bool) -> int | None:
        """The level to try next: see the head of this file."""
        top = len(self.plan.budgets) - 1
        if not self.shared:
            return None if trail.level == top else (trail.level or 0) + 1
        if self.plan.attack.minimum_norm:
            return None  # one search has said it all
        if not fooled:
            return trail.level if trail.scout else None
        return trail.lowest_level - 1 if trail.lowest_level > 0 else None

    def _candidate(self, trail: Trail, outcome: Attempt, i: int) -> Candidate:
        """What fooled the model, kept for records and pictures."""
        found = outcome.found
        return Candidate(
            trail.row,
            self.plan.budgets[trail.lowest_level],
            float(outcome.size[i]),
            int(outcome.label[i]),
            float(outcome.confidence[i]),
            found.images[i].float().cpu(),
            found.flow[i].float().cpu() if bool(found.flow[i].any()) else None,
        )


def _to_the_end(attack: Attack) -> Attack:
    """The attack going on after what is good for the largest budget: nearer serves the smaller."""
    stops = "early_stop" in {field.name for field in fields(attack)}
    changes: dict[str, Any] = {"early_stop": False} if stops else {}
    return replace(attack, **changes)
