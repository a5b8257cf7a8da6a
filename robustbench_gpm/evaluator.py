"""The one evaluator: a model under an attack over a whole range of budgets.

Budgets ascend, and a sample that is fooled leaves: the next, larger budget would fool it too.
Attacks search on an accelerated copy of the model; what counts is the verdict of the model itself,
in float32 and evaluation mode, on images that were checked to lie in [0,1] and inside the budget.
"""

from __future__ import annotations

import time
import zlib
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .attacks import Attack, FlowAttack
from .core import Samples, UserError, frozen
from .datasets import Split
from .fast import accelerated
from .progress import Bar, bar
from .records import AttackColumns, Example, Records
from .showcase import Candidate, Showcase
from .tasks import Classification

SLACK = 1e-5  # what float32 arithmetic may add to a perturbation's size


@dataclass(frozen=True)
class AttackPlan:
    """An attack by its name in the table, with ascending budgets in its threat's unit."""

    name: str
    attack: Attack
    budgets: tuple[float, ...]


@dataclass(frozen=True)
class Subject:
    """What is evaluated: a model on images in [0,1], and how it is called."""

    name: str
    model: nn.Module
    split: Split
    task: Classification
    provenance: dict[str, object]


@dataclass(frozen=True)
class Found:
    """Adversarial images of one batch, and the flows behind them where the attack moves pixels."""

    adversarial: Tensor
    flow: Tensor | None


@dataclass
class Tally:
    """What one attack has done to every sample so far."""

    smallest: NDArray[np.float64]
    forwards: NDArray[np.int64]
    backwards: NDArray[np.int64]
    seconds: NDArray[np.float64]
    showcase: Showcase

    @classmethod
    def start(cls, wrong: NDArray[np.bool_], examples: int) -> Tally:
        """Nothing spent; samples that are wrong without any attack are fooled at budget 0."""
        n = len(wrong)
        spent = (np.zeros(n, np.int64), np.zeros(n, np.int64), np.zeros(n))
        return cls(np.where(wrong, 0.0, np.nan), *spent, Showcase(examples))

    def standing(self) -> Tensor:
        """The rows that nothing has fooled yet."""
        return torch.from_numpy(np.flatnonzero(np.isnan(self.smallest)))


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
        show_progress: bool = False,
    ) -> None:
        self.subject, self.device, self.batch_size = subject, device, batch_size
        self.seed, self.examples, self.show = seed, examples, show_progress
        self.model = subject.model.to(device)
        self.prediction, self.confidence = self._clean()
        first, _ = self._batch(torch.arange(min(len(subject.split), 64)))
        self.search, self.search_facts = accelerated(self.model, first)
        self._attacks: list[AttackColumns] = []
        self._shown: list[Example] = []

    def attack(self, plan: AttackPlan) -> None:
        """Run one attack over its budgets, and add it to the records."""
        tally = self._tallied(plan)
        self._attacks.append(self._columns(plan, tally))
        chosen = tally.showcase.pick(tally.smallest)
        self._shown += [self._example(plan.name, candidate) for candidate in chosen]

    def records(self) -> Records:
        """The records of every attack run so far."""
        split = self.subject.split
        return Records(
            model=self.subject.name,
            classes=split.classes,
            index=split.index.numpy(),
            label=split.labels.numpy(),
            clean_prediction=self.prediction.numpy(),
            clean_confidence=self.confidence.numpy(),
            attacks=tuple(self._attacks),
            examples=tuple(self._shown),
            provenance={**self.subject.provenance, "search": self.search_facts},
        )

    def _batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        x, y = self.subject.split.batch(rows)
        return x.to(self.device), y.to(self.device)

    def _judge(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The verdict that counts: classes and confidences by the model itself."""
        return self._predict(self.model, x)

    def _predict(self, model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        with frozen(model):
            return self.subject.task.predict(model, x)

    def _clean(self) -> tuple[Tensor, Tensor]:
        """Clean predictions and confidences. Raises UserError if they aren't finite."""
        labels, confidences = [], []
        for rows in torch.split(torch.arange(len(self.subject.split)), self.batch_size):
            label, confidence = self._judge(self._batch(rows)[0])
            labels.append(label.cpu())
            confidences.append(confidence.cpu())
        confidence = torch.cat(confidences)
        if not bool(confidence.isfinite().all()):
            raise UserError(
                f"{self.subject.name} gives outputs that are NaN or infinite on clean images: "
                "its weights are damaged, or its input is not what it was trained on"
            )
        return torch.cat(labels), confidence

    def _tallied(self, plan: AttackPlan) -> Tally:
        wrong = (self.prediction != self.subject.split.labels).numpy()
        tally = Tally.start(wrong, self.examples)
        title = f"{self.subject.name}, {plan.name}"
        total = len(tally.standing()) * len(plan.budgets)
        with bar(title, total, "image", show=self.show) as progress:
            for place, budget in enumerate(plan.budgets):
                if not len(tally.standing()):
                    break
                larger = len(plan.budgets) - place - 1
                for rows in torch.split(tally.standing(), self.batch_size):
                    fooled = self._attack_batch(plan, budget, rows, tally)
                    progress.update(len(rows) + larger * fooled)
                    self._tell(progress, plan, budget, tally)
        return tally

    def _tell(self, progress: Bar, plan: AttackPlan, budget: float, tally: Tally) -> None:
        robust = float(np.isnan(tally.smallest).mean())
        progress.set_postfix_str(f"robust {robust:.1%} at {plan.attack.threat.label(budget)}")

    def _attack_batch(self, plan: AttackPlan, budget: float, rows: Tensor, tally: Tally) -> int:
        """Attack the samples in `rows` at one budget; book and count those that were fooled."""
        began = time.perf_counter()
        x, y = self._batch(rows)
        seed = zlib.crc32(f"{self.seed}/{plan.name}/{budget!r}".encode())
        samples = Samples(self.subject.split.index[rows], seed)
        found = self._find(plan, budget, self.search, x, y, samples)
        label, confidence = self._judge(found.adversarial)
        samples.book(forwards=1)
        doubtful = self._unconfirmed(found.adversarial, y, label, samples)
        if bool(doubtful.any()):  # the copy was fooled, the model is not: attack the model itself
            part = samples.select(doubtful)
            again = self._find(plan, budget, self.model, x[doubtful], y[doubtful], part)
            label[doubtful], confidence[doubtful] = self._judge(again.adversarial)
            part.book(forwards=1)
            found.adversarial[doubtful] = again.adversarial
            if found.flow is not None and again.flow is not None:
                found.flow[doubtful] = again.flow
        fooled = (label != y).cpu()
        hit = fooled.numpy()
        tally.smallest[rows.numpy()[hit]] = budget
        self._keep(tally, rows, budget, found, label, confidence, fooled)
        self._spend(tally, rows, samples, time.perf_counter() - began)
        return int(hit.sum())

    def _find(
        self,
        plan: AttackPlan,
        budget: float,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        samples: Samples,
    ) -> Found:
        attack = plan.attack
        loss = self.subject.task.attack_loss(attack.loss_name)
        if isinstance(attack, FlowAttack):
            flow = attack.flow(model, x, y, budget=budget, loss=loss, samples=samples)
            found = Found(attack.render(x, flow).clamp(0, 1), flow)
            perturbation = flow
        else:
            x_adv = attack(model, x, y, budget=budget, loss=loss, samples=samples)
            found = Found(x_adv, None)
            perturbation = x_adv - x
        size = float(attack.threat.size(perturbation).max())
        inside = float(found.adversarial.min()) >= 0 and float(found.adversarial.max()) <= 1
        if not inside or not size <= budget * (1 + SLACK) + SLACK:
            raise RuntimeError(
                f"{plan.name} broke its word: a perturbation of {size} for a budget of {budget}, "
                f"images {'inside' if inside else 'outside'} [0,1]"
            )
        return found

    def _unconfirmed(
        self, adversarial: Tensor, y: Tensor, label: Tensor, samples: Samples
    ) -> Tensor:
        """Samples that the search copy takes for fooled and the model itself does not."""
        doubtful = torch.zeros_like(label, dtype=torch.bool)
        standing = label == y
        if bool(standing.any()):
            claimed, _ = self._predict(self.search, adversarial[standing])
            samples.select(standing).book(forwards=1)
            doubtful[standing] = claimed != y[standing]
        return doubtful

    def _keep(
        self,
        tally: Tally,
        rows: Tensor,
        budget: float,
        found: Found,
        label: Tensor,
        confidence: Tensor,
        fooled: Tensor,
    ) -> None:
        """Keep some fooled samples for the picture."""
        for i in tally.showcase.places(budget, fooled):
            flow = None if found.flow is None else found.flow[i].float().cpu()
            image = found.adversarial[i].float().cpu()
            seen = int(label[i]), float(confidence[i])
            tally.showcase.keep(Candidate(int(rows[i]), budget, *seen, image, flow))

    def _spend(self, tally: Tally, rows: Tensor, samples: Samples, seconds: float) -> None:
        """Book passes and, in proportion to them, time."""
        forwards, backwards = samples.forwards.numpy(), samples.backwards.numpy()
        passes = forwards + backwards
        at = rows.numpy()
        tally.forwards[at] += forwards
        tally.backwards[at] += backwards
        tally.seconds[at] += seconds * passes / passes.sum()

    def _columns(self, plan: AttackPlan, tally: Tally) -> AttackColumns:
        threat = plan.attack.threat
        broken_by: list[str | None] = [
            None if np.isnan(b) else "clean" if b == 0 else plan.name for b in tally.smallest
        ]
        return AttackColumns(
            name=plan.name,
            hyperparameters=repr(plan.attack),
            threat=threat.name,
            unit=threat.unit,
            budgets=plan.budgets,
            labels=tuple(threat.label(budget) for budget in plan.budgets),
            smallest_budget=tally.smallest,
            broken_by=broken_by,
            forwards=tally.forwards,
            backwards=tally.backwards,
            seconds=tally.seconds,
        )

    def _example(self, attack: str, candidate: Candidate) -> Example:
        split, row = self.subject.split, candidate.row
        clean, _ = split.batch(torch.tensor([row]))
        flow = candidate.flow
        return Example(
            index=int(split.index[row]),
            label=int(split.labels[row]),
            attack=attack,
            budget=candidate.budget,
            clean_prediction=int(self.prediction[row]),
            clean_confidence=float(self.confidence[row]),
            prediction=candidate.prediction,
            confidence=candidate.confidence,
            clean=clean[0].numpy(),
            adversarial=candidate.adversarial.numpy(),
            flow=None if flow is None else flow.numpy(),
        )
