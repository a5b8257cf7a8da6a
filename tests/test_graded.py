"""Attacks on tasks with graded predictions: an oracle, falling scores, resuming, records."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attack_stage import quick
from torch import Tensor, nn

from robustbench_gpm.attacks import ATTACKS, Attack
from robustbench_gpm.attacks.apgd import APGD
from robustbench_gpm.attacks.flow import FlowPGD
from robustbench_gpm.attacks.pgd import PGD
from robustbench_gpm.attacks.union import Composed, Union
from robustbench_gpm.core import UserError
from robustbench_gpm.datasets import Split
from robustbench_gpm.evaluator import Subject
from robustbench_gpm.graded import GradedEvaluator, read, write
from robustbench_gpm.graded.command import draw_graded
from robustbench_gpm.graded.evaluator import check_suits
from robustbench_gpm.graded.summary import summarise
from robustbench_gpm.journal import Journal
from robustbench_gpm.masks import VOID
from robustbench_gpm.sweep import AttackPlan
from robustbench_gpm.tasks import Segmentation

N, SIDE = 7, 6
HEADER = dict.fromkeys(("weights_hash", "data_hash", "configuration_hash", "shard"), "x")
HEADER |= {"attacks": "x", "batch_size": "4"}


class Brightness(nn.Module):
    """Two classes, dark and bright: logits (B,2,H,W) that are linear in each pixel."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((0.5 - x, x - 0.5), 1)


def scenes() -> Split:
    """Pixels of any brightness, labelled as they are, some of them void."""
    stream = torch.Generator().manual_seed(0)
    images = torch.randint(256, (N, 1, SIDE, SIDE), dtype=torch.uint8, generator=stream)
    masks = (images[:, 0] > 127).to(torch.uint8)
    masks[:, 0, 0] = VOID
    return Split(images, masks, torch.arange(N), ("dark", "bright"))


def evaluator(**changes: Any) -> GradedEvaluator:
    provenance: dict[str, object] = dict.fromkeys(
        ("weights_hash", "data_hash", "configuration_hash"), "x"
    )
    subject = Subject("pixels", Brightness().eval(), scenes(), Segmentation(), provenance)
    return GradedEvaluator(subject, torch.device("cpu"), **{"batch_size": 4, **changes})


def plan(name: str, *budgets: float) -> AttackPlan:
    return AttackPlan(name, ATTACKS[name], budgets)


def iou_of_flipped(budget: float) -> float:
    """Mean IoU where every pixel within `budget` of the border changes sides."""
    split = scenes()
    x, y = split.batch(slice(None))
    predicted = torch.where((x[:, 0] - 0.5).abs() < budget, 1 - y.clamp(max=1), y.clamp(max=1))
    ious = []
    for kind in (0, 1):
        both = ((predicted == kind) & (y == kind)).sum()
        either = ((predicted == kind) | (y == kind)) & (y != VOID)
        ious.append(float(both / either.sum()))
    return sum(ious) / 2


@pytest.mark.parametrize("name", ["pgd", "apgd", "fgsm"])
def test_pixels_within_the_budget_of_the_border_change_sides(name: str) -> None:
    measuring = evaluator()
    measuring.attack(plan(name, 0.101, 0.301))
    curves: Any = summarise(measuring.records())["curves"]
    assert curves[name]["robust"] == pytest.approx([iou_of_flipped(0.101), iou_of_flipped(0.301)])
    assert summarise(measuring.records())["clean"] == 1.0


def test_no_sample_s_score_rises_with_the_budget() -> None:
    measuring = evaluator()
    for name in ("flow-pgd", "pgd"):
        measuring.attack(plan(name, 0.05, 0.2, 0.6))
    for attack in measuring.records().attacks:
        scores = np.stack([measuring.clean.score, *(level.score for level in attack.levels)])
        assert (np.diff(scores, axis=0) <= 0).all()
        assert scores[-1].mean() < scores[0].mean() - 0.05
        assert (attack.forwards > 0).all()


def test_the_batch_size_changes_nothing() -> None:
    found = []
    for size in (2, 7):
        measuring = evaluator(batch_size=size)
        measuring.attack(plan("pgd", 0.1, 0.2))
        found.append([level.score for level in measuring.records().attacks[0].levels])
    np.testing.assert_array_equal(found[0], found[1])


@pytest.mark.parametrize("labels_move", [False, True])
def test_labels_may_move_along(labels_move: bool) -> None:
    """A pixel's own brightness decides: moved by whole pixels with its label, it stays right."""
    measuring = evaluator(labels_move=labels_move)
    task, split = measuring.task, scenes()
    x, y = split.batch(slice(None))
    flow = torch.zeros(N, 2, SIDE, SIDE)
    flow[:, 0] = 1.0
    shifted = ATTACKS["flow-pgd"].render(x, flow)  # type: ignore[attr-defined]
    labels = task.moved(y, flow) if labels_move else y
    score = task.measure(measuring.model, shifted, labels, 2).score
    assert bool((score == 1).all()) == labels_move
    measuring.attack(plan("flow-pgd", 0.9))
    assert measuring.records().labels_move == labels_move


def test_an_evaluation_goes_on_from_its_journal(tmp_path: Path) -> None:
    whole = evaluator()
    whole.attack(plan("pgd", 0.1, 0.2))
    first = evaluator()
    first.batches = first.batches[:1]
    first.attack(plan("pgd", 0.1, 0.2), Journal(tmp_path, HEADER))
    journal, again = Journal(tmp_path, HEADER), evaluator()
    assert journal.resumed
    seen: list[int] = []
    attacked = again._attacked
    again._attacked = lambda p, rows: (seen.append(len(rows)), attacked(p, rows))[1]  # type: ignore[method-assign, func-returns-value]
    again.attack(plan("pgd", 0.1, 0.2), journal)
    assert seen == [3]
    assert len(again.pictures["pgd"]) == len(whole.pictures["pgd"]) == 2
    assert _same(again.records(), whole.records())
    for one, other in zip(again.pictures["pgd"], whole.pictures["pgd"], strict=True):
        np.testing.assert_array_equal(one.attacked, other.attacked)


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    measuring = evaluator(labels_move=True)
    measuring.attack(plan("pgd", 0.1, 0.2))
    measuring.attack(plan("flow-pgd", 0.5))
    records = measuring.records()
    write(records, tmp_path)
    back = read(tmp_path)
    assert _same(back, records)
    assert summarise(back) == summarise(records)
    (tmp_path / "records.parquet").write_bytes(b"no")
    with pytest.raises(UserError, match="cannot be read"):
        read(tmp_path)


@pytest.mark.parametrize(
    "name", ["fab", "deepfool", "fast", "apgd-t", "rotate-translate", "autoattack"]
)
def test_attacks_that_need_one_class_a_sample_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="choose an attack that raises a loss"):
        check_suits(plan(name, 0.1))


def _same(one: Any, other: Any) -> bool:
    """All that was measured, but for the time it took."""
    ours, theirs = list(one.levels()), list(other.levels())
    assert [name for name, _ in ours] == [name for name, _ in theirs]
    for (_, a), (_, b) in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a.score, b.score)
        np.testing.assert_array_equal(np.stack(a.evidence), np.stack(b.evidence))
    for a, b in zip(one.attacks, other.attacks, strict=True):
        np.testing.assert_array_equal(a.forwards, b.forwards)
        assert replace(a, **_BLANK) == replace(b, **_BLANK) or a.name == b.name
    return bool(np.array_equal(one.index, other.index)) and one.labels_move == other.labels_move


_BLANK: dict[str, Any] = {"levels": (), "forwards": None, "backwards": None, "seconds": None}


def test_a_union_brings_each_sample_as_low_as_the_worst_of_its_members() -> None:
    members = (("pgd", PGD(random_start=False)), ("flow-pgd", FlowPGD()))
    budgets, shares = (0.1, 0.25), (0.5, 1.0)
    measuring = evaluator(examples=N)
    measuring.attack(AttackPlan("union", Union(members, budgets), shares))
    for (name, attack), budget in zip(members, budgets, strict=True):
        ladder = tuple(share * budget for share in shares)
        measuring.attack(AttackPlan(name, attack, ladder))
    first = (members[1], members[0], budgets[::-1])
    measuring.attack(AttackPlan("composed", Composed(*first), shares))
    union, pgd, flow, composed = measuring.records().attacks
    worst = set()
    for together, *alone, both in zip(
        union.levels, pgd.levels, flow.levels, composed.levels, strict=True
    ):
        scores = np.stack([level.score for level in alone])
        np.testing.assert_array_equal(together.score, scores.min(0))
        worst |= set(scores.argmin(0).tolist())
        assert (both.score <= together.score).all()
    assert worst == {0, 1}  # or the union would be the one or the other
    assert (composed.levels[0].score < union.levels[0].score).any()
    np.testing.assert_array_equal(union.forwards, pgd.forwards + flow.forwards)
    for picture, score in zip(measuring.pictures["union"], union.levels[1].score, strict=True):
        row = (measuring.subject.split.index == picture.index).nonzero().flatten()
        _, y = measuring._loaded(row)
        shown = measuring._measured(torch.from_numpy(picture.adversarial)[None], y)
        assert shown.score.item() == score


@pytest.mark.parametrize("labels_move", [False, True])
def test_only_what_moves_pixels_moves_labels(labels_move: bool) -> None:
    """Where a whole pixel's move cannot be blamed, intensities still can."""
    measuring = evaluator(labels_move=labels_move)
    measuring.attack(AttackPlan("union", ATTACKS["union"], (0.5, 1.0)))
    measuring.attack(plan("pgd", 8 / 255))
    union, pgd = measuring.records().attacks
    assert (union.levels[-1].score <= pgd.levels[0].score).all()
    assert (pgd.levels[0].score < 1).any()


def test_attacks_that_usually_raise_a_margin_raise_what_there_is() -> None:
    measuring = evaluator()
    for name in ("square", "stadv", "smoothed-pgd", "shared-pgd"):
        attack = quick(ATTACKS[name])
        measuring.attack(AttackPlan(name, attack, (0.3,)))
        done = measuring.records().attacks[-1]
        assert "loss='cross_entropy'" in done.hyperparameters
        assert done.levels[0].score.mean() < measuring.clean.score.mean()


@pytest.mark.parametrize(
    ("attack", "words"),
    [
        (PGD(loss="vanishing"), "segmentation has none: choose from cross_entropy, masked"),
        (ATTACKS["apgd-dlr"], "called 'dlr'"),
        (APGD(loss="segpgd"), "changes from step to step"),
    ],
)
def test_losses_of_other_tasks_are_refused(attack: Attack, words: str) -> None:
    with pytest.raises(UserError, match=words):
        evaluator().attack(AttackPlan("it", attack, (0.1,)))


def test_a_union_alone_has_a_curve(tmp_path: Path) -> None:
    """Its budgets are shares, of neither intensity nor location."""
    measuring = evaluator()
    measuring.attack(plan("union", 0.5, 1.0))
    draw_graded([measuring.records()], tmp_path)
    assert (tmp_path / "curve.png").stat().st_size > 0
