"""Doubt about graded predictions: where gradients are masked and set-ups broken, not elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from broken_defences import Bend, backwards
from graded_subjects import MADE, N, subject
from torch import Tensor, nn
from whole_runs import Run, run

from robustbench_gpm.attacks import ATTACKS
from robustbench_gpm.core import UserError
from robustbench_gpm.datasets import Split
from robustbench_gpm.evaluator import Subject
from robustbench_gpm.graded import GradedEvaluator, GradedRecords, merged, read, write
from robustbench_gpm.graded.evaluator import NeverEnough
from robustbench_gpm.models import Normalised
from robustbench_gpm.models.normalise import NormalisedDetector
from robustbench_gpm.shards import Shard
from robustbench_gpm.sweep import AttackPlan
from robustbench_gpm.tasks import GradedTask
from robustbench_gpm.trust import GradedView, preflight, views

__all__ = ["run"]  # a fixture

CPU = torch.device("cpu")
tasks = pytest.mark.parametrize("task", MADE)
Change = Callable[[Tensor], Tensor]


class Through(nn.Module):
    """A network, with or without labels, behind a change of its images."""

    def __init__(self, network: nn.Module, change: Change) -> None:
        super().__init__()
        self.network, self.change = network, change

    def forward(self, x: Tensor, *labels: Tensor) -> Any:
        return self.network(self.change(x), *labels)


class _Bend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bend: Bend) -> Tensor:
        ctx.bend = bend
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.bend(gradient, gradient), None


def rounded(x: Tensor) -> Tensor:
    return (x * 15).round() / 15


def noisy(x: Tensor) -> Tensor:
    return x + 0.05 * torch.randn_like(x)


def bent(x: Tensor) -> Tensor:
    return _Bend.apply(x, backwards)


def among_others(x: Tensor) -> Tensor:
    return x - 0.5 * x.mean(0)


MASKED = {"zero_gradients", "black_box_beats_white_box"}
BROKEN: dict[str, tuple[Change, set[str]]] = {
    "rounded": (rounded, MASKED),
    "detached": (lambda x: x.detach().clone(), MASKED),
    "noisy": (noisy, {"randomised_outputs"}),
    "bent": (bent, {"loss_does_not_rise"}),
    "among others": (among_others, {"batch_dependent"}),
}


def evaluated(who: Subject, *budgets: float, name: str = "pgd", **options: Any) -> GradedRecords:
    given = {"batch_size": 16, "checks": True, **options}
    running = GradedEvaluator(who, CPU, **given)
    running.attack(AttackPlan(name, ATTACKS[name], budgets or (0.02, 0.1, 0.2)))
    return running.records()


def told(records: GradedRecords) -> set[str]:
    return {str(flag["name"]) for flag in records.flags}


@pytest.fixture(autouse=True)
def _few_images_tell_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("robustbench_gpm.trust.indicators"), "CHANCE", 1)


@tasks
@pytest.mark.parametrize("budget", [0.03, 0.1])
def test_an_honest_model_raises_no_doubt(task: str, budget: float) -> None:
    for name in ("pgd", "pgd-l2"):
        found = evaluated(subject(task), budget if name == "pgd" else 20 * budget, name=name)
        assert told(found) == set()
        assert found.attacks[0].levels[0].score.mean() < found.clean.score.mean()


@tasks
@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_model_is_caught(task: str, case: str) -> None:
    change, expected = BROKEN[case]
    found = evaluated(subject(task, lambda network: Through(network, change)))
    assert told(found) >= expected
    for flag in found.flags:
        assert flag["kind"] == "doubt"
        assert flag["measured"] > flag["threshold"]  # type: ignore[operator]
        assert flag.get("at") in (None, "linf 25.5/255")


def test_a_flow_alone_is_not_looked_at() -> None:
    masked = subject("multilabel", lambda network: Through(network, rounded))
    assert told(evaluated(masked, 0.5, name="flow-pgd")) == set()


def test_without_checks_there_is_nothing_to_tell() -> None:
    masked = subject("multilabel", lambda network: Through(network, rounded))
    found = evaluated(masked, checks=False)
    assert found.flags == ()
    assert found.provenance["checks"] is None


@tasks
def test_checks_change_no_score(task: str) -> None:
    scores = [
        evaluated(subject(task), checks=on).attacks[0].levels[1].score for on in (True, False)
    ]
    assert scores[0].tolist() == scores[1].tolist()


class Said(nn.Module):
    """A network whose outputs are changed."""

    def __init__(self, network: nn.Module, change: Change) -> None:
        super().__init__()
        self.network, self.change = network, change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.network(x))


@pytest.mark.parametrize(
    ("task", "change", "name"),
    [
        ("segmentation", lambda logits: logits.softmax(1), "softmax_outputs"),
        ("multilabel", lambda logits: logits.sigmoid(), "softmax_outputs"),
        (
            "segmentation",
            lambda logits: torch.cat((logits, logits[:, :2] - 99), 1),
            "classes",
        ),
    ],
)
def test_what_is_wrong_with_the_outputs_is_told(task: str, change: Change, name: str) -> None:
    assert name in told(evaluated(subject(task, lambda network: Said(network, change))))


@tasks
def test_outputs_that_are_not_finite_are_refused(task: str) -> None:
    class Overflowing(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor, *labels: Tensor) -> Any:
            outputs = self.network(x, *labels)
            return outputs if labels else outputs * torch.nan

    with pytest.raises(UserError, match=f"{task} gives outputs that are NaN or infinite"):
        evaluated(subject(task, Overflowing))


@tasks
def test_normalisation_done_twice_or_never_is_told(task: str) -> None:
    kind = NormalisedDetector if task == "detection" else Normalised

    def names(around: Callable[[nn.Module], nn.Module]) -> set[str]:
        who = subject(task, around, count=100)
        assert isinstance(who.task, GradedTask)
        view = GradedView(who.task, len(who.split.classes), NeverEnough(who.task.loss))
        return {flag.name for flag in preflight(who.model, who.split, view, CPU, 50)}

    assert names(lambda network: network) == set()
    assert names(lambda network: kind(network, (-0.5,), (0.2,))) == {"normalised_twice"}
    if task == "segmentation":  # the others rank as well on images of any scale
        images = subject(task, count=100).split.images.float() / 255
        mean, std = images.mean(), images.std()
        missed = names(lambda network: Through(network, lambda x: std * x + mean))
        assert missed == {"not_normalised"}


class Timid(nn.Module):
    """The quarters' brightness without their certainty, on any scale."""

    def forward(self, x: Tensor) -> Tensor:
        return 5 * (nn.functional.avg_pool2d(x, 16).flatten(1) - 0.2)


def test_a_surer_model_that_ranks_no_better_is_not_taken_for_an_unnormalised_one() -> None:
    """Its score, a mean probability, rises with the contrast of its images; mAP does not."""
    who = subject("multilabel", lambda _: Timid(), count=100)
    assert isinstance(who.task, GradedTask)
    view = GradedView(who.task, 4, NeverEnough(who.task.loss))
    x, y = who.split.batch(slice(None))
    clean, other = (view.right(who.model, z, y)[0] for z in (x, (x - x.mean()) / x.std()))
    assert float((other - clean).mean()) > 0.15
    assert preflight(who.model, who.split, view, CPU, 50) == []


def test_dark_images_are_told() -> None:
    who = subject("multilabel")
    dark = Split(who.split.images // 200, who.split.labels, who.split.index, who.split.classes)
    assert "input_range" in told(
        evaluated(Subject(who.name, who.model, dark, who.task, who.provenance))
    )


def test_training_mode_is_told_where_it_matters() -> None:
    def dropping(network: nn.Module) -> nn.Module:
        return Through(network, nn.Dropout(0.5))

    who = subject("segmentation", dropping)
    who.model.train()
    (flag,) = evaluated(who).flags
    assert (flag["name"], flag["kind"]) == ("training_mode", "note")
    assert who.model.training


@tasks
def test_all_shards_raise_the_same_flags_and_tell_their_cost(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GradedView, "most", 2)

    def masked() -> Subject:
        return subject(task, lambda network: Through(network, noisy))

    whole = evaluated(masked(), 0.1, batch_size=3)
    parts = [evaluated(masked(), 0.1, shard=Shard(n, 2), batch_size=3) for n in (1, 2)]
    assert whole.flags
    for records in (*parts, merged(parts)):
        assert records.flags == whole.flags
        assert records.provenance["checks"] == whole.provenance["checks"]
    checks: Any = whole.provenance["checks"]
    assert checks["forwards"] > checks["backwards"] > 0
    assert checks["forwards"] <= 410 * 2 + 20 * N
    assert checks["backwards"] <= 210 * 2
    write(whole, tmp_path)
    assert read(tmp_path).flags == whole.flags


def test_no_more_images_are_examined_than_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    judge = GradedView.judge

    def spy(self: GradedView, model: nn.Module, x: Tensor, *given: Any) -> Any:
        seen.append(len(x))
        return judge(self, model, x, *given)

    monkeypatch.setattr(views.GradedView, "most", 3)
    monkeypatch.setattr(views.GradedView, "judge", spy)
    evaluated(subject("multilabel"))
    assert max(seen) == 3


NET = """
import sys
sys.path.insert(0, {tests!r})
from graded_subjects import Segmenter
from test_graded_trust import Through, rounded

def masked():
    return Through(Segmenter(), rounded)
"""


def test_the_command_prints_and_stores_the_flags(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GradedView, "most", 2)
    (tmp_path / "net.py").write_text(NET.format(tests=str(Path(__file__).parent)))
    flags = ["--model", "net.py:masked", "--data_name", "digit_scenes", "--device", "cpu"]
    flags += ["--attack", "pgd", "--budgets", "0.1", "--limit", "7"]
    code, printed, error = run(*flags, "--out", "checked")
    assert code == 0, error
    summary = json.loads((tmp_path / "checked/summary.json").read_text())
    names = [flag["name"] for flag in summary["flags"]]
    doubts = [line for line in printed.splitlines() if line.startswith("doubt: ")]
    assert "zero_gradients" in names
    assert len(doubts) == len(names)
    assert f"doubt: {names[0]} (net.py-masked, linf 25.5/255): " in doubts[0]
    code, printed, _ = run(*flags, "--no_checks", "--out", "unchecked")
    summary = json.loads((tmp_path / "unchecked/summary.json").read_text())
    assert "doubt: " not in printed
    assert summary["flags"] == []
    assert summary["provenance"]["checks"] is None
    code, _, error = run(*flags, "--escalate", "--out", "escalated")
    assert code == 2
    assert "--escalate" in error
