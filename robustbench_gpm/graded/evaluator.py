"""A model under attack where predictions are graded: the metric of many samples against budget.

Each sample is attacked at each budget, smallest first, on the model itself. What counts for it at a
budget is the lowest score that any perturbation inside that budget has brought it to, so that no
sample's score rises with the budget.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ..attacks import Attack, raises_any_loss
from ..attacks.options import innermost, told
from ..attacks.perturbed import Perturbed
from ..core import Loss, Samples, UserError, frozen, loss_at
from ..evaluator import Subject, middle
from ..journal import Journal
from ..progress import bar
from ..shards import Shard
from ..sweep import AttackPlan
from ..tasks.base import GradedTask, Measured
from ..trust import Examination, GradedView, connected
from ..verdict import check_kept_word
from .batch import Outcome, Picture, join, pack, unpack
from .records import GradedAttack, GradedRecords, Level


class GradedEvaluator:
    """Runs attacks on one subject and keeps the records."""

    def __init__(
        self,
        subject: Subject,
        device: torch.device,
        *,
        batch_size: int = 16,
        seed: int = 0,
        examples: int = 2,
        labels_move: bool = False,
        shard: Shard | None = None,
        checks: bool = False,
        show_progress: bool = False,
    ) -> None:
        """`labels_move`: judge a deformation by labels that moved along with the pixels.

        `checks` looks for what makes a result doubtful, on the whole split whatever the shard; see
        trust.
        """
        assert isinstance(subject.task, GradedTask)
        self.subject, self.task, self.device = subject, subject.task, device
        self.seed, self.show = seed, show_progress
        self.examples, self.labels_move = examples, labels_move
        split, self.shard, self.batch_size = subject.split, shard, batch_size
        self.batches = (shard or Shard()).batches(len(split), batch_size)
        self.rows = torch.cat([rows for _, rows in self.batches])
        self.model = subject.model.to(device)
        view = GradedView(
            self.task, len(split.classes), NeverEnough(self.task.attack_loss("cross_entropy"))
        )
        self.examination: Examination | None = None
        if checks:
            self.examination = Examination(
                self.model, split, view, device, batch_size=batch_size, seed=seed
            )
        self.pictures: dict[str, list[Picture]] = {}
        self._attacks: list[GradedAttack] = []
        self.clean = self._clean()
        x, y = self._loaded(self.rows[:1])
        self.searched = connected(self.model, x, lambda model, x: view.outputs(model, x, y))

    def attack(self, plan: AttackPlan, journal: Journal | None = None) -> None:
        """Run one attack over its budgets, and add it to the records.

        Batches that the `journal` holds are taken from it, and the others added to it. Raises
        UserError for an attack that has no meaning here.
        """
        check_suits(plan)
        plan = replace(plan, attack=told(plan.attack, plan.name, self.task))
        if self.examination is not None:
            self.examination.beside(self.searched, plan.attack.threat, middle(plan))
        outcomes: list[Outcome] = []
        title, total = f"{self.subject.name}, {plan.name}", len(self.rows)
        with bar(title, total, "image", show=self.show) as progress:
            for number, rows in self.batches:
                outcome = None if journal is None else journal.load(plan.name, number, unpack)
                if outcome is None:
                    outcome = self._attacked(plan, rows)
                    if journal is not None:
                        journal.store(plan.name, number, pack(outcome))
                outcomes.append(outcome)
                progress.update(len(rows))
                progress.set_postfix_str(self._standing(plan, outcomes))
        self._attacks.append(_columns(plan, outcomes))
        self.pictures[plan.name] = [picture for each in outcomes for picture in each.pictures]

    def records(self) -> GradedRecords:
        """The records of every attack run so far."""
        split, looked = self.subject.split, self.examination
        findings = looked.findings if looked else []
        return GradedRecords(
            model=self.subject.name,
            task=self.task.name,
            metric=self.task.metric,
            classes=split.classes,
            labels_move=self.labels_move,
            index=split.index[self.rows].numpy(),
            clean=self.clean,
            attacks=tuple(self._attacks),
            provenance={
                **self.subject.provenance,
                "examples": self.examples,
                "shard": self.shard.told(len(split), self.batch_size) if self.shard else None,
                "checks": looked.cost if looked else None,
            },
            flags=tuple(finding.flag.as_dict(finding.at) for finding in findings),
            pictures={name: tuple(pictures) for name, pictures in self.pictures.items()},
        )

    def _clean(self) -> Level:
        """What is made of the samples without any attack. Raises UserError for NaN outputs."""
        broken = False

        def look(_: nn.Module, __: object, outputs: Tensor) -> None:
            nonlocal broken
            broken |= not bool(outputs.isfinite().all())

        looking = self.model.register_forward_hook(look)
        try:
            levels = [_level(self._measured(*self._loaded(rows))) for _, rows in self.batches]
        finally:
            looking.remove()
        if broken:
            raise UserError(
                f"{self.subject.name} gives outputs that are NaN or infinite on clean images: "
                "its weights are damaged, or its input is not what it was trained on"
            )
        return join(levels)

    def _attacked(self, plan: AttackPlan, rows: Tensor) -> Outcome:
        """One batch over all budgets."""
        x, y = self._loaded(rows)
        clean = worst = self._measured(x, y)
        began, spent = time.perf_counter(), torch.zeros(2, len(rows), dtype=torch.int64)
        levels, shown = [], list[Picture]()
        for place, budget in enumerate(plan.budgets):
            samples = self._samples(plan, budget, rows)
            found, reached = self._worst_found(plan, budget, x, y, samples)
            worst = worse_of(worst, reached)
            levels.append(_level(worst))
            spent += torch.stack((samples.forwards, samples.backwards))
            if place == len(plan.budgets) // 2:
                shown = self._pictures(budget, rows, (x, y), found, clean, reached)
        seconds = (time.perf_counter() - began) / len(rows)
        forwards, backwards = spent.numpy()
        return Outcome(levels, forwards, backwards, np.full(len(rows), seconds), shown)

    def _worst_found(
        self, plan: AttackPlan, budget: float, x: Tensor, y: Tensor, samples: Samples
    ) -> tuple[Perturbed, Measured]:
        """Of what the attack, or each attack of several, finds, what brings a sample lowest."""
        found, reached = Perturbed.changed(x, x.clone()), None
        for other in self._found(plan, budget, x, y, samples):
            moved = self.labels_move and bool(other.moves.any())
            measured = self._measured(other.images, self.task.moved(y, other.flow) if moved else y)
            samples.book(forwards=1)
            lower = torch.ones(len(x), dtype=torch.bool)
            if reached is not None:
                lower = measured.score < reached.score
            found.put(lower, other.select(lower))
            reached = measured if reached is None else worse_of(reached, measured)
        assert reached is not None
        return found, reached

    def _found(
        self, plan: AttackPlan, budget: float, x: Tensor, y: Tensor, samples: Samples
    ) -> Iterator[Perturbed]:
        def loss_of(attack: Attack) -> Loss:
            return NeverEnough(self.task.attack_loss(attack.loss_name))

        for found in plan.attack.each_found(
            self.searched, x, y, budget=budget, loss_of=loss_of, samples=samples
        ):
            check_kept_word(plan.attack, budget, found.images, plan.attack.size(found))
            yield found

    def _samples(self, plan: AttackPlan, budget: float, rows: Tensor) -> Samples:
        seed = zlib.crc32(f"{self.seed}/{plan.name}/{budget!r}".encode())
        return Samples(self.subject.split.index[rows], seed)

    def _loaded(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        x, y = self.subject.split.batch(rows)
        return x.to(self.device), y.to(self.device)

    def _measured(self, x: Tensor, y: Tensor) -> Measured:
        with frozen(self.model), torch.no_grad():
            return self.task.measure(self.model, x, y, len(self.subject.split.classes))

    def _pictures(
        self,
        budget: float,
        rows: Tensor,
        batch: tuple[Tensor, Tensor],
        found: Perturbed,
        clean: Measured,
        reached: Measured,
    ) -> list[Picture]:
        """Those of the first samples of the split."""
        split = self.subject.split
        return [
            Picture(
                int(split.index[row]),
                budget,
                image=split.shown(batch[0][i]).cpu().numpy(),
                adversarial=split.shown(found.images[i]).cpu().numpy(),
                flow=(
                    shown_flow(found.flow[i], split.frames).cpu().numpy()
                    if found.moves[i]
                    else np.empty(0, np.float32)
                ),
                truth=batch[1][i].cpu().numpy(),
                clean=clean.prediction[i].cpu().numpy(),
                attacked=reached.prediction[i].cpu().numpy(),
            )
            for i, row in enumerate(rows.tolist())
            if row < self.examples
        ]

    def _standing(self, plan: AttackPlan, outcomes: list[Outcome]) -> str:
        """The mean score so far at the smallest and the largest budget."""
        told = []
        for place in sorted({0, len(plan.budgets) - 1}):
            score = np.concatenate([outcome.levels[place].score for outcome in outcomes]).mean()
            told.append(f"{plan.attack.threat.label(plan.budgets[place])}: {score:.3f}")
        return f"score {', '.join(told)}"


def shown_flow(flow: Tensor, frames: int) -> Tensor:
    """Of a flow a frame (2T,H,W) that of the frame in the middle; (2,H,W) is of all frames."""
    return flow if len(flow) == 2 else flow[2 * (frames // 2) :][:2]


@dataclass(frozen=True)
class NeverEnough:
    """A loss that takes nobody for fooled, so that attacks go on raising it to their end."""

    ends: ClassVar[bool] = False
    inner: Loss

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return self.inner(model, x, y)

    def judged(self, model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        losses = self.inner(model, x, y)
        return losses, torch.zeros_like(losses, dtype=torch.bool)

    def at(self, step: int, steps: int) -> NeverEnough:
        """Whatever the loss is at that step of an attack."""
        return NeverEnough(loss_at(self.inner, step, steps))


def check_suits(plan: AttackPlan) -> None:
    """Raise UserError for an attack that needs one class a sample."""
    if not all(map(raises_any_loss, innermost(plan.attack))):
        raise UserError(
            f"{plan.name} looks for another class than a sample's own, and here a sample has many: "
            "choose an attack that raises a loss, such as pgd, apgd, flow-pgd or stadv"
        )


def worse_of(one: Measured, other: Measured) -> Measured:
    """Of each sample the outcome of lower score; of equals, the first."""
    lower = other.score < one.score
    pairs = zip(one.evidence, other.evidence, lower.tolist(), strict=True)
    chosen = [theirs if low else own for own, theirs, low in pairs]
    shape = (-1,) + (1,) * (one.prediction.dim() - 1)
    return Measured(
        torch.where(lower, other.score, one.score),
        chosen,
        torch.where(lower.view(shape), other.prediction, one.prediction),
    )


def _level(measured: Measured) -> Level:
    return Level(measured.score.float().cpu().numpy(), measured.evidence)


def _columns(plan: AttackPlan, outcomes: list[Outcome]) -> GradedAttack:
    threat = plan.attack.threat
    return GradedAttack(
        name=plan.name,
        hyperparameters=repr(plan.attack),
        threat=threat.name,
        unit=threat.unit,
        budgets=plan.budgets,
        labels=tuple(threat.label(budget) for budget in plan.budgets),
        levels=tuple(
            join([outcome.levels[place] for outcome in outcomes])
            for place in range(len(plan.budgets))
        ),
        forwards=np.concatenate([outcome.forwards for outcome in outcomes]),
        backwards=np.concatenate([outcome.backwards for outcome in outcomes]),
        seconds=np.concatenate([outcome.seconds for outcome in outcomes]),
    )
