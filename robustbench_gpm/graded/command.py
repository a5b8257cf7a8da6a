"""The part of `evaluate.py` that is of graded tasks: attacks, records, summary, pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ..attacks.options import innermost
from ..config import EvaluateConfig
from ..core import UserError, frozen
from ..evaluator import Subject
from ..journal import Journal
from ..report.curves import draw_metric
from ..shards import Shard
from ..sweep import AttackPlan
from ..tasks.base import GradedTask
from ..trust import sentences
from .evaluator import GradedEvaluator, check_suits
from .pictures import draw_predictions
from .records import GradedRecords, write
from .summary import curve, write_summary

GRADED_BATCH = 16


def check_graded(
    config: EvaluateConfig, plans: Sequence[AttackPlan], subjects: Sequence[Subject]
) -> None:
    """Raise UserError for what has no meaning where predictions are graded."""
    for plan in plans:
        check_suits(plan)
        for subject in subjects:
            _check_losses(plan, subject)
    asked = {
        "--escalate": config.escalate,
        "--no_shared_work": config.no_shared_work,
    }
    for name, given in asked.items():
        if given:
            raise UserError(f"{name} is for tasks with one class a sample: leave it out")


def _check_losses(plan: AttackPlan, subject: Subject) -> None:
    """Raise UserError for a loss that this very model cannot give: it is asked for one."""
    assert isinstance(subject.task, GradedTask)
    x, y = subject.split.batch(slice(1))
    for attack in innermost(plan.attack):
        with frozen(subject.model), torch.no_grad():
            subject.task.attack_loss(attack.loss_name)(subject.model, x, y)


def evaluate_graded(
    config: EvaluateConfig,
    subject: Subject,
    plans: Sequence[AttackPlan],
    device: torch.device,
    folder: Path,
    journal: Journal,
    batch_size: int,
    shard: Shard | None,
) -> GradedRecords:
    """Run all attacks on one subject; write and print what was measured."""
    evaluator = GradedEvaluator(
        subject,
        device,
        batch_size=batch_size,
        seed=config.seed,
        examples=config.examples,
        labels_move=config.labels == "move",
        shard=shard,
        checks=not config.no_checks,
        show_progress=True,
    )
    for plan in plans:
        evaluator.attack(plan, journal)
        write(evaluator.records(), folder)  # what is measured is kept
    measured = evaluator.records()
    report_graded(measured, folder)
    return measured


def report_graded(measured: GradedRecords, folder: Path) -> None:
    """Write the summary and pictures of `measured` into `folder`; print its curves and flags."""
    write_summary(measured, folder)
    draw_graded([measured], folder)
    draw_predictions(measured, folder)
    for attack in measured.attacks:
        points = zip(("clean", *attack.labels), curve(measured, attack), strict=True)
        told = ", ".join(f"{label}: {100 * value.value:.1f}" for label, value in points)
        print(f"{measured.model} under {attack.name}, {measured.metric} in %: {told}")
    for line in sentences(measured.model, measured.flags):
        print(line)


def draw_graded(measured: Sequence[GradedRecords], folder: Path) -> None:
    """Draw the metric against budget."""
    draw_metric(measured, curve, measured[0].metric, folder)
