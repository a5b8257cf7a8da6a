"""AutoAttack's verdict for a small share of its work: spend where it can still change something.

AutoAttack spends nearly all of its passes on samples that it does not break. Here every sample gets
a short untargeted run. What stands is then asked how much more budget it would take, to first
order, to be fooled from the best point reached. Those that miss more than two budgets are left in
peace; the nearer to none the answer, the more targets and steps a sample gets, and last a search
without gradients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ..core import Loss, Samples, UserError
from ..losses import LOSSES
from .apgd import APGD, TargetedAPGD
from .ascent import judged, rivals
from .base import Attack
from .hyperplane import missing_budgets
from .square import Square
from .threats import THREATS, Threat


@dataclass(frozen=True)
class Phase:
    """Targeted runs for the samples that miss at most the share `within` of the budget.

    Each is of `steps` steps, towards the `targets` likeliest wrong classes at the best point so
    far; `warm` runs begin there, others at random.
    """

    within: float
    targets: int
    steps: int
    warm: bool = False


EVERYBODY = float("inf")
PHASES = (
    Phase(2.0, targets=2, steps=20, warm=True),
    Phase(0.5, targets=4, steps=20),
    Phase(0.15, targets=9, steps=60),
    Phase(0.05, targets=9, steps=100),
)


@dataclass(frozen=True)
class FastVerdict(Attack):
    """APGD in phases, each for fewer samples; see the head of this file.

    `steps` are those of the untargeted run that opens. A sample is followed by where its margin
    (largest wrong logit less the right one) was highest; what it misses is that margin over the
    dual norm of its gradient, in budgets. At the end, who misses at most `queries_within` is
    attacked by Square with `queries` queries.
    """

    usual_loss: ClassVar[str] = "margin"

    norm: Literal["linf", "l2", "l1"] = "linf"
    steps: int = 20
    phases: tuple[Phase, ...] = PHASES
    queries: int = 500
    queries_within: float = 0.05

    def __post_init__(self) -> None:
        """Refuse phases that are none."""
        super().__post_init__()
        if not isinstance(self.phases, tuple) or not all(isinstance(p, Phase) for p in self.phases):
            raise UserError(f"FastVerdict: phases must be a tuple of Phase, not {self.phases!r}")

    @property
    def threat(self) -> Threat:
        return THREATS[self.norm]

    def perturb(
        self, model: nn.Module, x: Tensor, y: Tensor, budget: float, loss: Loss, samples: Samples
    ) -> Tensor:
        state = _Standing(model, x, y, loss, samples)
        if budget == 0:
            return x
        opening = APGD(self.norm, steps=self.steps)
        rows = state.rows(EVERYBODY)
        run = opening.run(
            model, x[rows], y[rows], budget, LOSSES[opening.loss_name], samples.select(rows)
        )
        state.take(rows, run.best, run.found, run.fooled, "apgd-ce")
        for phase in self.phases:
            state.measure(budget, self.norm)
            self._targeted(phase, state, budget)
        state.measure(budget, self.norm)
        rows = state.rows(self.queries_within)
        if len(rows) > 0:
            square, part = Square(self.norm, queries=self.queries), samples.select(rows)
            found = square.perturb(model, x[rows], y[rows], budget, loss, part)
            state.judge(rows, found, "square")
        return state.answer

    def _targeted(self, phase: Phase, state: _Standing, budget: float) -> None:
        rows = state.rows(phase.within)
        attack = TargetedAPGD(self.norm, steps=phase.steps)
        targets = state.rivals(rows)[:, : phase.targets]
        for target in targets.unbind(1):
            live = ~state.fooled[rows]
            now, aims = rows[live], target[live]
            if len(now) == 0:
                break
            run = attack.run(
                state.model,
                state.x[now],
                torch.stack((state.y[now], aims), dim=1),
                budget,
                LOSSES[attack.loss_name],
                state.samples.select(now),
                state.best[now] if phase.warm else None,
            )
            state.take(now, run.best, run.found, run.fooled, "apgd-t")


class _Standing:
    """How far each sample of a batch has been brought."""

    def __init__(
        self, model: nn.Module, x: Tensor, y: Tensor, loss: Loss, samples: Samples
    ) -> None:
        self.model, self.x, self.y, self.loss, self.samples = model, x, y, loss, samples
        self.answer, self.best = x.clone(), x.clone()
        self.margin = x.new_full((len(x),), -torch.inf)
        self.missing = torch.zeros_like(self.margin)  # budgets; nobody is left out unmeasured
        self.fooled = torch.zeros(len(x), dtype=torch.bool, device=x.device)

    def rows(self, within: float) -> Tensor:
        """Who stands and misses at most so many budgets."""
        return (~self.fooled & (self.missing <= within)).nonzero().squeeze(1)

    def take(self, rows: Tensor, best: Tensor, found: Tensor, fooled: Tensor, name: str) -> None:
        """Take in a run: what fooled, and the best points where their margin is the highest yet."""
        self._fall(rows[fooled], found[fooled], name)
        rows, best = rows[~fooled], best[~fooled]
        if len(rows) == 0:
            return
        margin, over = judged(self.model, best, self.y[rows], self.loss, self.samples.select(rows))
        better = margin > self.margin[rows]
        self.margin[rows[better]] = margin[better]
        self.best[rows[better]] = self.answer[rows[better]] = best[better]
        self._fall(rows[over], best[over], name)

    def judge(self, rows: Tensor, found: Tensor, name: str) -> None:
        """Take in images of an attack that does not say whom it fooled."""
        part = self.samples.select(rows)
        _, fooled = judged(self.model, found, self.y[rows], self.loss, part)
        self._fall(rows[fooled], found[fooled], name)

    def _fall(self, rows: Tensor, images: Tensor, name: str) -> None:
        self.answer[rows] = images
        self.fooled[rows] = True
        self.samples.select(rows).credit(name)

    def measure(self, budget: float, norm: str) -> None:
        """What each standing sample misses at its best point, in budgets."""
        rows = self.rows(EVERYBODY)
        if len(rows) == 0:
            return
        part = self.samples.select(rows)
        missing = missing_budgets(
            self.model, self.best[rows], self.y[rows], budget, norm, self.loss, part
        )
        self.missing[rows] = missing.clamp_min(0).nan_to_num(nan=0.0, posinf=torch.inf)

    def rivals(self, rows: Tensor) -> Tensor:
        """The wrong classes by falling logit at the best points, (b,K-1)."""
        part = self.samples.select(rows)
        return rivals(self.model, self.best[rows], self.y[rows], part)[1]
