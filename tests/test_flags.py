"""Flags on their way from the checks to the records, the screen and the picture."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from broken_defences import Detached, LoudLogits, Noisy
from matplotlib.figure import Figure
from test_attacks_table import passes_counted
from test_records import synthetic
from test_report import LONG, assert_nothing_is_cut, texts
from test_trust import CHANGES, CHECKPOINTS, CPU, Changed, baseline, data, trained
from torch import Tensor, nn

from robustbench_gpm import cli
from robustbench_gpm import evaluator as module
from robustbench_gpm.attacks import ATTACKS
from robustbench_gpm.datasets import Split
from robustbench_gpm.evaluator import Evaluator, Subject
from robustbench_gpm.journal import WHAT, Journal
from robustbench_gpm.records import Records, read, write
from robustbench_gpm.report import draw_curves
from robustbench_gpm.shards import Shard, merged
from robustbench_gpm.sweep import AttackPlan
from robustbench_gpm.tasks import Classification
from robustbench_gpm.trust import ClassView, Connected, examination
from robustbench_gpm.trust.flags import raised

HASHES: dict[str, object] = dict.fromkeys(("weights_hash", "data_hash", "configuration_hash"), "0")
LINF, L2 = (0.1, 0.2, 0.3), (0.5, 1.0)


def plan(name: str = "pgd", budgets: tuple[float, ...] = LINF) -> AttackPlan:
    return AttackPlan(name, ATTACKS[name], budgets)


def evaluated(
    model: nn.Module,
    *plans: AttackPlan,
    split: Split | None = None,
    journal: Journal | None = None,
    **options: Any,
) -> Records:
    who = Subject("net", model, split or data().limit(40), Classification(), dict(HASHES))
    running = Evaluator(who, CPU, **{"checks": True, **options})
    for each in plans or (plan(),):
        running.attack(each, journal)
    return running.records()


class Dithered(nn.Module):
    """No gradient, and noise too small to change a verdict."""

    def __init__(self) -> None:
        super().__init__()
        self.network = LoudLogits(trained(0.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x + 0.01 * torch.randn_like(x))


@pytest.mark.parametrize("make", [lambda: LoudLogits(trained(0.0)), Dithered])
def test_every_shard_batch_and_resumed_run_raises_the_same_flags(
    make: Callable[[], nn.Module], tmp_path: Path
) -> None:
    """Whatever random numbers were drawn before."""
    whole = evaluated(make())
    assert whole.flags
    header = dict.fromkeys(WHAT, "0")
    for _ in range(2):
        torch.manual_seed(7)
        journal = Journal(tmp_path, header)
        resumed = evaluated(make(), journal=journal)
        assert resumed.flags == whole.flags
        assert resumed.provenance["checks"] == whole.provenance["checks"]
    parts = [evaluated(make(), shard=Shard(n, 2), batch_size=20) for n in (1, 2)]
    assert parts[0].flags == parts[1].flags == merged(parts).flags
    assert [f["name"] for f in parts[0].flags] == [f["name"] for f in whole.flags]
    write(whole, tmp_path / "stored")
    assert read(tmp_path / "stored").flags == whole.flags


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the indicators were called with, one entry a call."""
    calls: list[dict[str, Any]] = []
    honest = examination.indicators

    def spy(model: nn.Module, x: Tensor, y: Tensor, **given: Any) -> Any:
        calls.append({**given, "model": model, "x": x})
        return honest(model, x, y, **given)

    monkeypatch.setattr(examination, "indicators", spy)
    return calls


def test_each_norm_is_looked_at_once_at_the_middle_budget(looked_at: list[dict[str, Any]]) -> None:
    plans = (plan(), plan("fgsm", (0.4,)), plan("pgd-l2", L2), plan("stadv", (0.5,)))
    records = evaluated(LoudLogits(trained(0.0)), *plans)
    assert [(call["norm"], call["budget"]) for call in looked_at] == [("linf", 0.2), ("l2", 1.0)]
    places = [flag["at"] for flag in records.flags]
    assert list(dict.fromkeys(places)) == ["linf 51/255", "l2 1"]


def test_a_flow_alone_is_not_looked_at(looked_at: list[dict[str, Any]]) -> None:
    assert evaluated(LoudLogits(trained(0.0)), plan("flow-pgd", (0.5,))).flags == ()
    assert looked_at == []


@pytest.mark.parametrize("shard", [None, Shard(2, 3)])
def test_the_first_images_that_are_right_are_looked_at(
    looked_at: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, shard: Shard | None
) -> None:
    monkeypatch.setattr(ClassView, "most", 30)
    split = data().limit(90)
    evaluated(trained(0.0), split=split, shard=shard, batch_size=7)
    x, y = split.batch(slice(None))
    right = trained(0.0)(x).argmax(1) == y
    assert not bool(right[:30].all())
    assert torch.equal(looked_at[0]["x"], x[right][:30])


def test_the_cost_is_in_the_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "copies", lambda model, sample: ([], {}))
    net = nn.Sequential(trained(0.0))
    with passes_counted(net) as counted:
        records = evaluated(net, plan(), plan("pgd-l2", L2))
    checks = records.provenance["checks"]
    assert isinstance(checks, dict)
    assert set(checks) == {"forwards", "backwards"}  # no seconds: the same in every run
    spent = {k: sum(int(getattr(a, k).sum()) for a in records.attacks) for k in checks}
    clean = {"forwards": len(records.index), "backwards": 0}
    assert counted == {k: checks[k] + spent[k] + clean[k] for k in checks}


def test_without_checks_there_is_nothing_to_tell(looked_at: list[dict[str, Any]]) -> None:
    records = evaluated(LoudLogits(trained(0.0)), checks=False)
    assert records.flags == ()
    assert records.provenance["checks"] is None
    assert looked_at == []


def test_checks_change_no_verdict() -> None:
    with_checks, without = (evaluated(baseline(), checks=on).attacks[0] for on in (True, False))
    assert with_checks.smallest_budget.tolist() == without.smallest_budget.tolist()
    assert with_checks.forwards.tolist() == without.forwards.tolist()


def test_training_mode_is_seen_before_anything_changes_it() -> None:
    records = evaluated(baseline().train())
    assert [(flag["name"], flag["kind"]) for flag in records.flags] == [("training_mode", "note")]


def test_a_flag_of_the_set_up_is_not_raised_again_beside_an_attack() -> None:
    flags = evaluated(Noisy(trained(0.0))).flags
    assert [flag.get("at") for flag in flags if flag["name"] == "randomised_outputs"] == [None]


class Rough(nn.Module):
    """A copy in bfloat16."""

    coarse = True

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)


@pytest.mark.parametrize("drifts", [True, False])
def test_nothing_searches_in_half_precision_where_it_drifts(
    monkeypatch: pytest.MonkeyPatch, looked_at: list[dict[str, Any]], drifts: bool
) -> None:
    model = Changed(CHANGES["half_precision_drift"]).eval() if drifts else trained(0.0)
    copies = [Rough(model), nn.Sequential(model)]
    monkeypatch.setattr(module, "copies", lambda model, sample: (copies, {"bfloat16": True}))
    who = Subject("net", model, data().limit(60), Classification(), dict(HASHES))
    running = Evaluator(who, CPU, checks=True)
    assert running.verifier.ladder == [*copies[drifts:], model]
    running.attack(plan())
    assert looked_at[0]["model"] is copies[1]
    records = running.records()
    assert records.provenance["search"]["bfloat16"] is not drifts  # type: ignore[index]
    assert [flag["kind"] for flag in records.flags] == ["note"] * drifts


@pytest.mark.parametrize("shared", [True, False])
def test_a_model_outside_autograd_can_be_attacked(shared: bool) -> None:
    torch.manual_seed(0)
    plans = [plan(name, (0.2,)) for name in ("pgd", "apgd", "fab")]
    plans += [plan("pgd-l2", (1.0,)), plan("stadv", (0.5,))]
    split = data().limit(8)
    records = evaluated(Detached(trained(0.0)), *plans, split=split, shared=shared)
    assert "zero_gradients" in {flag["name"] for flag in records.flags}
    assert "zero_gradients" not in {flag["name"] for flag in evaluated(trained(0.0)).flags}


@pytest.mark.parametrize("shared", [True, False])
def test_a_model_with_a_gradient_is_searched_as_it_is(shared: bool) -> None:
    for net in (trained(0.0), baseline()):
        who = Subject("net", net, data().limit(20), Classification(), dict(HASHES))
        ladder = Evaluator(who, CPU, shared=shared).verifier.ladder
        assert not any(isinstance(each, Connected) for each in ladder)
        assert ladder[-1] is net


def flags(*names: str, at: str = "") -> list[dict[str, object]]:
    return [flag.as_dict(at) for name in names for flag in raised(name, 0.3, 0.05)]


MASKED = [
    *flags("zero_gradients", "loss_does_not_rise", "black_box_beats_white_box", at="linf 8/255"),
    *flags("softmax_outputs"),
    *flags("fgsm_beats_pgd", at="l2 0.5"),
]
NOTED = flags("half_precision_drift", "training_mode")


def drawn(models: list[Records], folder: Path, monkeypatch: pytest.MonkeyPatch) -> Figure:
    """The figure of the curves, and that it was saved in both forms."""
    figures: list[Figure] = []
    honest = Figure.savefig

    def savefig(self: Figure, *args: Any, **given: Any) -> None:
        figures.append(self)
        honest(self, *args, **given)

    with monkeypatch.context() as patch:
        patch.setattr(Figure, "savefig", savefig)
        draw_curves(models, folder)
    assert len(figures) == 2
    return figures[0]


def note(figure: Figure) -> str:
    """What the picture says of flags, the lines joined."""
    told = [text.get_text() for text in texts(figure) if "in doubt" in text.get_text()]
    return " ".join("\n".join(told).split())


@pytest.mark.parametrize("attacks", [("pgd",), ("pgd", "stadv")])
def test_the_picture_names_the_flags_of_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attacks: tuple[str, ...]
) -> None:
    one = replace(synthetic("masked", attacks), flags=(*MASKED, *NOTED))
    figure = drawn([one], tmp_path, monkeypatch)
    assert note(figure) == (
        "Results in doubt (summary.json says why): masked: zero gradients, loss does not rise, "
        "black box beats white box (linf 8/255); softmax outputs; fgsm beats pgd (l2 0.5)"
    )
    assert_nothing_is_cut(figure)
    box = figure.legends[1].get_window_extent()
    assert all(box.y0 > panel.get_tightbbox().y1 for panel in figure.axes)  # over no curve


def test_the_picture_names_each_doubtful_model_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["healthy", LONG, "/a/very/long/path" * 9]
    models = [replace(synthetic(name), flags=tuple(MASKED * (name != "healthy"))) for name in names]
    figure = drawn(models, tmp_path, monkeypatch)
    assert "healthy" not in note(figure)
    assert note(figure).count("zero gradients") == 2
    assert LONG in note(figure)
    assert_nothing_is_cut(figure)


def test_a_picture_without_doubts_is_the_same_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = []
    for name, raised_flags in (("none", ()), ("notes", NOTED)):
        one = replace(synthetic("fine"), flags=tuple(raised_flags))
        assert note(drawn([one], tmp_path / name, monkeypatch)) == ""
        pictures.append((tmp_path / name / "curve.png").read_bytes())
    assert pictures[0] == pictures[1]


NET = """
from pathlib import Path
from torch import nn
from robustbench_gpm.checkpoint import load

class Loud(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = load(Path({path!r})).model
    def forward(self, x):
        return 3000 * self.network(x)
"""


@pytest.fixture
def evaluate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[str, dict[str, Any]]]:
    """evaluate.py on a network whose logits are too loud: what it prints, and its summary."""
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NET.format(path=str(CHECKPOINTS / "digits_baseline")))

    def run(out: str, *arguments: object) -> tuple[str, dict[str, Any]]:
        model = ["--model", "net.py:Loud", "--data_name", "digits", "--device", "cpu"]
        common = ["--attack", "pgd", "--budgets", "0.2", "--limit", "30", "--out", out]
        code = cli.evaluate([*model, *common, *map(str, arguments)])
        printed = capsys.readouterr()
        assert code == 0, printed.err
        return printed.out, json.loads(Path(out, "summary.json").read_text())

    return run


def doubts(printed: str) -> list[str]:
    return [line for line in printed.splitlines() if line.startswith("doubt: ")]


def test_the_command_prints_and_stores_the_flags(evaluate: Any) -> None:
    printed, summary = evaluate("checked")
    told = {flag["name"]: flag for flag in summary["flags"]}
    assert {"zero_gradients", "black_box_beats_white_box"} <= set(told)
    assert len(doubts(printed)) == len(told)
    meaning = told["zero_gradients"]["meaning"]
    (line,) = [each for each in doubts(printed) if "zero_gradients" in each]
    assert line.startswith("doubt: zero_gradients (")
    assert line.endswith(f", linf 51/255): {meaning}")
    assert summary["provenance"]["checks"]["forwards"] > 0
    assert Path("checked/curve.png").is_file()


def test_the_command_leaves_the_checks_out(evaluate: Any) -> None:
    printed, summary = evaluate("unchecked", "--no_checks")
    assert doubts(printed) == summary["flags"] == []
    assert summary["provenance"]["checks"] is None


def test_the_command_escalates(evaluate: Any) -> None:
    _, summary = evaluate("escalated", "--escalate")
    curve = summary["curves"]["pgd"]
    assert curve["robust_accuracy"] == [0.0]
    assert curve["broken_by"]["logit_scale_free_loss"] > 20
    assert "zero_gradients" in summary["provenance"]["escalated"]["pgd"]["because_of"]
    assert summary["flags"]  # the doubt about the defence stays


def test_merged_shards_keep_their_flags_and_tell_them(
    evaluate: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = [f"part{n}" for n in (1, 2)]
    told = [evaluate(part, "--batch_size", 15, "--shard", f"{part[-1]}/2") for part in parts]
    assert cli.evaluate(["merge", *parts, "--out", "whole"]) == 0
    printed = capsys.readouterr().out
    assert doubts(printed) == doubts(told[0][0]) == doubts(told[1][0]) != []
    assert json.loads(Path("whole/summary.json").read_text())["flags"] == told[0][1]["flags"]


def test_escalation_without_checks_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.evaluate(["--escalate", "--no_checks"]) == 2
    assert "leave out --no_checks" in capsys.readouterr().err
