"""torchattacks' attacks, and the authors' AutoAttack where it is installed, as contenders."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torchattacks
from duel import Counted, Found, Stage, Tally, clock
from torch import Tensor, nn

from robustbench_gpm.core import frozen
from robustbench_gpm.evaluator import Subject
from robustbench_gpm.verdict import SLACK

PGD_STEPS, PGD_STEP_SIZE = 20, 0.125  # the step of the budget; both are what `pgd` does here
Member = Callable[[nn.Module, float], Any]


class There:
    """Attacks of torchattacks in turn, each on what those before it left standing at a budget.

    The next budget begins anew, on every image that the model gets right.
    """

    def __init__(
        self,
        subject: Subject,
        device: torch.device,
        members: Mapping[str, Member],
        budgets: Sequence[float],
        chunk: int,
    ) -> None:
        self.tally, self.subject, self.device = Tally(), subject, device
        self.search: dict[str, object] = {}
        self.members, self.budgets = members, budgets
        self.model = Counted(subject.model.to(device), self.tally)
        rows = torch.arange(len(subject.split))
        with frozen(self.model):
            batches = [self._wrong(*subject.split.batch(part)) for part in rows.split(chunk)]
        self.right = ~torch.cat(batches).cpu()

    def __call__(self, rows: Tensor) -> Found:
        right = self.right[rows]
        levels = torch.where(right, len(self.budgets), -1)
        x, y = (part.to(self.device) for part in self.subject.split.batch(rows))
        stages: dict[str, Stage] = {}
        with frozen(self.model):  # a favour: no gradients of weights
            for level, budget in reversed(list(enumerate(self.budgets))):
                standing = right.nonzero().flatten()
                for name, member in self.members.items():
                    if not len(standing):
                        break
                    named = name if len(self.budgets) == 1 else f"{255 * budget:.3g}/255"
                    stages[named] = stage = Stage()
                    with self._booked(stage):
                        attacked = member(self.model, budget)(x[standing], y[standing])
                        inside = _inside(attacked, x[standing], budget)
                        fooled = self._wrong(attacked, y[standing]) & inside
                    stage.fooled = int(fooled.sum())
                    levels[standing[fooled.cpu()]] = level
                    standing = standing[~fooled.cpu()]
        return Found(levels, stages)

    @torch.no_grad()
    def _wrong(self, x: Tensor, y: Tensor) -> Tensor:
        logits: Tensor = self.model(x.to(self.device))
        return logits.argmax(1) != y.to(self.device)

    @contextmanager
    def _booked(self, stage: Stage) -> Iterator[None]:
        before = replace(self.tally)
        began = clock(self.device)
        yield
        stage.seconds = clock(self.device) - began
        stage.forwards = self.tally.forwards - before.forwards
        stage.backwards = self.tally.backwards - before.backwards


def autoattack_members(classes: int, steps: int, queries: int) -> dict[str, Member]:
    """The standard AutoAttack out of torchattacks' parts, at the paper's settings."""
    ta, wrong = torchattacks, classes - 1
    of_fab = {"steps": steps, "multi_targeted": True, "n_classes": classes}
    return {
        "APGD": lambda model, budget: ta.APGD(model, eps=budget, steps=steps, loss="ce"),
        f"APGDT, {wrong} targets": lambda model, budget: ta.APGDT(
            model, eps=budget, steps=steps, n_classes=classes
        ),
        f"FAB, {wrong} targets": lambda model, budget: ta.FAB(model, eps=budget, **of_fab),
        "Square": lambda model, budget: ta.Square(model, eps=budget, n_queries=queries),
    }


def pgd_members(steps: int) -> dict[str, Member]:
    """PGD with this suite's step size, from a random start."""
    return {
        "PGD": lambda model, budget: torchattacks.PGD(
            model, eps=budget, alpha=PGD_STEP_SIZE * budget, steps=steps
        )
    }


def packaged_members() -> dict[str, Member]:
    """AutoAttack as its authors' code is packaged; ImportError where it is not installed."""
    from pyautoattack import AutoAttack  # type: ignore[import-not-found]  # noqa: PLC0415

    def member(model: nn.Module, budget: float) -> Callable[[Tensor, Tensor], Tensor]:
        def attack(x: Tensor, y: Tensor) -> Tensor:
            whole = AutoAttack(model, eps=budget, norm="Linf", seed=0, device=x.device)
            images: Tensor = whole.run_standard_evaluation(x, y, batch_size=len(x))[0]
            return images

        return attack

    return {"AutoAttack": member}


def _inside(images: Tensor, x: Tensor, budget: float) -> Tensor:
    """Which images (B,C,H,W) are in [0,1] and within the linf budget of x, but for rounding."""
    size = (images - x).flatten(1).abs().amax(1)
    valid = (images.flatten(1).amin(1) >= 0) & (images.flatten(1).amax(1) <= 1)
    return valid & (size <= budget * (1 + SLACK) + SLACK)
