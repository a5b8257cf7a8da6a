"""The one evaluator: a model under an attack over a whole range of budgets.

Attacks search on faster copies of the model; what counts is the verdict of the model itself, in
float32 and evaluation mode, on images that were checked to lie in [0,1] and inside the budget.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from .core import UserError
from .datasets import Split
from .escalation import escalated, remedies
from .fast import copies
from .journal import Journal, Outcome
from .progress import bar
from .records import AttackColumns, Example, Records
from .shards import Shard
from .showcase import Candidate, shown
from .sweep import AttackPlan, Sweep, Trail
from .tasks import Classification, Task
from .trust import ClassView, Examination, Flag, connected
from .verdict import Verifier

COMPARED = 16  # images on which a faster copy must agree with the model


@dataclass(frozen=True)
class Subject:
    """What is evaluated: a model on images in [0,1], and how it is called."""

    name: str
    model: nn.Module
    split: Split
    task: Task
    provenance: dict[str, object]


class Evaluator:
    """Runs attacks on one subject and keeps the records."""

    def __init__(
        self,
        subject: Subject,
        device: torch.device,
        *,
        batch_size: int = 250,
        seed: int = 0,
        examples: int = 4,
        shared: bool = True,
        shard: Shard | None = None,
        checks: bool = False,
        escalate: bool = False,
        show_progress: bool = False,
    ) -> None:
        """`shared` False attacks every budget afresh, on the model itself, at its full cost.

        `checks` looks for what makes a result doubtful, and `escalate` then adds to an attack what
        its flags call for; see trust and escalation.
        """
        self.subject, self.device, self.batch_size = subject, device, batch_size
        self.seed, self.examples, self.shared, self.show = seed, examples, shared, show_progress
        self.batches = (shard or Shard()).batches(len(subject.split), batch_size)
        self.rows = torch.cat([rows for _, rows in self.batches])
        self.shard = shard
        model = subject.model.to(device)
        assert isinstance(subject.task, Classification)
        self.task = subject.task
        first, _ = subject.split.batch(torch.arange(min(len(subject.split), COMPARED)))
        self.examination: Examination | None = None
        if checks or escalate:
            self.examination = Examination(
                model, subject.split, ClassView(self.task), device, batch_size=batch_size, seed=seed
            )
        self.escalate, self._escalated = escalate, dict[str, dict[str, object]]()
        self.verifier = self._prepared(model, first.to(device))
        self.prediction, self.confidence = self._clean()
        self._attacks: list[AttackColumns] = []
        self._shown: list[Example] = []

    def attack(self, plan: AttackPlan, journal: Journal | None = None) -> None:
        """Run one attack over its budgets, and add it to the records.

        Batches that the `journal` holds are taken from it, and the others added to it.
        """
        flags = self._examined(plan)
        plan = self._escalate(plan, flags)
        sweep = Sweep(
            plan,
            self.verifier,
            self.subject.split,
            self.device,
            seed=self.seed,
            shared=self.shared,
            gated=not remedies(flags),  # a first step says little where gradients are masked
        )
        outcomes, pictures = self._clean_mistakes(), dict[int, Candidate]()
        room = dict.fromkeys(plan.budgets, self.examples)
        total = sum(outcome is None for outcome in outcomes.values())
        with bar(f"{self.subject.name}, {plan.name}", total, "image", show=self.show) as progress:
            for number, rows in self.batches:
                found = None if journal is None else journal.read(plan.name, number)
                if found is None:
                    right = torch.tensor([r for r in rows.tolist() if outcomes[r] is None])
                    trails = sweep.run(right) if len(right) else []
                    kept = _worth_keeping(trails, room)
                    found = [_outcome(trail, plan) for trail in trails], kept
                    if journal is not None:
                        journal.add(plan.name, number, *found)
                for candidate in found[1]:
                    room[candidate.budget] -= 1
                outcomes.update({outcome.row: outcome for outcome in found[0]})
                pictures.update({candidate.row: candidate for candidate in found[1]})
                progress.update(len(found[0]))
                progress.set_postfix_str(_standing(outcomes.values(), plan))
        columns = self._columns(plan, [outcomes[row] for row in self.rows.tolist()])
        self._attacks.append(columns)
        places = shown(columns, self.examples)
        rows_shown = self.rows[torch.from_numpy(places)].tolist()
        self._shown += [self._example(plan.name, pictures[row]) for row in rows_shown]

    @property
    def flags(self) -> tuple[dict[str, object], ...]:
        """What the checks have raised so far, as the records hold it."""
        findings = self.examination.findings if self.examination else []
        return tuple(finding.flag.as_dict(finding.at) for finding in findings)

    def records(self) -> Records:
        """The records of every attack run so far."""
        split, provenance = self.subject.split, dict(self.subject.provenance)
        shard = self.shard.told(len(split), self.batch_size) if self.shard else None
        return Records(
            model=self.subject.name,
            classes=split.classes,
            index=split.index[self.rows].numpy(),
            label=split.labels[self.rows].numpy(),
            clean_prediction=self.prediction.numpy(),
            clean_confidence=self.confidence.numpy(),
            attacks=tuple(self._attacks),
            examples=tuple(self._shown),
            provenance={
                **provenance,
                "search": self.search_facts,
                "shared_work": self.shared,
                "examples": self.examples,
                "frames": split.frames,
                "shard": shard,
                "checks": self.examination.cost if self.examination else None,
                "escalated": self._escalated,
            },
            flags=self.flags,
        )

    def _prepared(self, model: nn.Module, first: Tensor) -> Verifier:
        """The model and its faster copies, each with a gradient to search along."""
        faster, self.search_facts = copies(model, first) if self.shared else ([], {})
        if self.examination is not None and self.examination.raised("half_precision_drift"):
            precise = [each for each in faster if not getattr(each, "coarse", False)]
            if len(precise) < len(faster):
                self.search_facts |= {"bfloat16": False, "why_float32": "half_precision_drift"}
            faster = precise
        if "why" in self.search_facts or not self.shared:  # else the copies' gradients were seen
            model, *faster = (connected(each, first[:1]) for each in (model, *faster))
        return Verifier(model, faster, self.task)

    def _examined(self, plan: AttackPlan) -> list[Flag]:
        """The flags that concern the plan."""
        if self.examination is None:
            return []
        searched = next(m for m in self.verifier.ladder if not getattr(m, "coarse", False))
        return self.examination.beside(searched, plan.attack.threat, middle(plan))

    def _escalate(self, plan: AttackPlan, flags: list[Flag]) -> AttackPlan:
        """The plan, with the attacks that its flags call for where that was asked for."""
        attack = escalated(plan.attack, flags, plan.name) if self.escalate else plan.attack
        if attack is plan.attack:
            return plan
        reasons = [flag.name for flag in flags if remedies([flag])]
        self._escalated[plan.name] = {"attack": repr(plan.attack), "because_of": reasons}
        return replace(plan, attack=attack)

    def _clean(self) -> tuple[Tensor, Tensor]:
        """Clean predictions and confidences. Raises UserError if they aren't finite."""
        labels, confidences = [], []
        for _, rows in self.batches:
            x, _ = self.subject.split.batch(rows)
            label, confidence = self.verifier.judge(x.to(self.device))
            labels.append(label.cpu())
            confidences.append(confidence.cpu())
        confidence = torch.cat(confidences)
        if not bool(confidence.isfinite().all()):
            raise UserError(
                f"{self.subject.name} gives outputs that are NaN or infinite on clean images: "
                "its weights are damaged, or its input is not what it was trained on"
            )
        return torch.cat(labels), confidence

    def _clean_mistakes(self) -> dict[int, Outcome | None]:
        """By row: done with where the model is wrong without any attack, else None."""
        right = self.prediction == self.subject.split.labels[self.rows]
        return {
            row: None if ok else Outcome(row, 0.0, "clean", 0, 0, 0.0)
            for row, ok in zip(self.rows.tolist(), right.tolist(), strict=True)
        }

    def _columns(self, plan: AttackPlan, outcomes: list[Outcome | None]) -> AttackColumns:
        threat = plan.attack.threat
        done = [outcome for outcome in outcomes if outcome is not None]
        return AttackColumns(
            name=plan.name,
            hyperparameters=repr(plan.attack),
            threat=threat.name,
            unit=threat.unit,
            budgets=plan.budgets,
            labels=tuple(threat.label(budget) for budget in plan.budgets),
            smallest_budget=np.array([outcome.smallest for outcome in done], np.float64),
            broken_by=[outcome.broken_by for outcome in done],
            forwards=np.array([outcome.forwards for outcome in done], np.int64),
            backwards=np.array([outcome.backwards for outcome in done], np.int64),
            seconds=np.array([outcome.seconds for outcome in done], np.float64),
        )

    def _example(self, attack: str, candidate: Candidate) -> Example:
        split, row = self.subject.split, candidate.row
        place = int((self.rows == row).nonzero())
        clean, _ = split.batch(torch.tensor([row]))
        flow = candidate.flow
        return Example(
            index=int(split.index[row]),
            label=int(split.labels[row]),
            attack=attack,
            budget=candidate.budget,
            clean_prediction=int(self.prediction[place]),
            clean_confidence=float(self.confidence[place]),
            prediction=candidate.prediction,
            confidence=candidate.confidence,
            clean=clean[0].numpy(),
            adversarial=candidate.adversarial.numpy(),
            flow=None if flow is None else flow.numpy(),
        )


def _outcome(trail: Trail, plan: AttackPlan) -> Outcome:
    smallest = float("nan")
    if trail.found is not None:
        smallest = trail.found.budget
        if plan.attack.minimum_norm:
            smallest = min(smallest, trail.found.size)  # a distance, known better than a budget
    spent = trail.forwards, trail.backwards, trail.seconds
    return Outcome(trail.row, smallest, trail.broken_by, *spent)


def _worth_keeping(trails: Iterable[Trail], room: Mapping[float, int]) -> list[Candidate]:
    """What fooled the first few samples at each budget."""
    left, kept = dict(room), []
    for trail in trails:
        if trail.found is not None and left[trail.found.budget] > 0:
            left[trail.found.budget] -= 1
            kept.append(trail.found)
    return kept


def _standing(outcomes: Iterable[Outcome | None], plan: AttackPlan) -> str:
    """The robust accuracy at the middle budget, of the samples done so far."""
    budget = middle(plan)
    done = np.array([outcome.smallest for outcome in outcomes if outcome is not None])
    robust = 1 - float((done <= budget).mean()) if len(done) else 1.0
    return f"robust {robust:.1%} at {plan.attack.threat.label(budget)}"


def middle(plan: AttackPlan) -> float:
    """The budget that progress is told at, and that the checks look at."""
    return plan.budgets[len(plan.budgets) // 2]
