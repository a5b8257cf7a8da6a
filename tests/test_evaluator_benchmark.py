"""benchmarks/evaluator.py on a few digits, and that it counts what it spends."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from robustbench_gpm.attacks import ATTACKS, FlowAttack
from robustbench_gpm.attacks.autoattack import standard
from robustbench_gpm.datasets import Split
from robustbench_gpm.evaluator import Subject
from robustbench_gpm.tasks import Classification

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")
DIGITS = str(ROOT / "checkpoints" / "digits_baseline")


@pytest.fixture(scope="module", autouse=True)
def _found() -> Iterator[None]:
    """The benchmarks import one another by bare names, as scripts of one folder do."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield
    sys.path.remove(str(ROOT / "benchmarks"))


@pytest.fixture(scope="module")
def program(_found: None) -> ModuleType:
    return importlib.import_module("evaluator")


@pytest.fixture(scope="module")
def parts(_found: None) -> ModuleType:
    return importlib.import_module("duel")


@pytest.fixture(scope="module")
def theirs(_found: None) -> ModuleType:
    return importlib.import_module("theirs")


class Watched(nn.Module):
    """A network that keeps a count of its own, which its copies share."""

    seen = 0

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(2 * 36, 12), nn.ReLU(), nn.Linear(12, 5))

    def forward(self, x: Tensor) -> Tensor:
        type(self).seen += x.shape[0]
        logits: Tensor = self.net(x)
        return logits


@pytest.fixture
def subject() -> Subject:
    """A network on twenty images, of which it gets all but the last two right."""
    net = Watched().eval()
    images = torch.randint(0, 256, (20, 2, 6, 6), dtype=torch.uint8)
    labels = net(images / 255).argmax(1)
    labels[-2:] = (labels[-2:] + 1) % 5
    split = Split(images, labels, torch.arange(20), tuple("abcde"))
    return Subject("tiny", net, split, Classification(), {})


def test_a_pass_is_counted_for_each_sample_and_each_gradient(parts: ModuleType) -> None:
    tally = parts.Tally()
    model = parts.Counted(nn.Linear(3, 2), tally)
    with torch.no_grad():
        model(torch.rand(4, 3))
    assert (tally.forwards, tally.backwards) == (4, 0)
    logits = model(torch.rand(5, 3))
    assert (tally.forwards, tally.backwards) == (9, 0)
    logits.sum().backward(retain_graph=True)
    logits[:, 0].sum().backward()
    assert (tally.forwards, tally.backwards) == (9, 10)


def test_pgd_of_torchattacks_costs_what_is_known_of_it(
    parts: ModuleType, theirs: ModuleType, subject: Subject
) -> None:
    makers = {"one": lambda: theirs.There(subject, CPU, theirs.pgd_members(7), [0.01, 0.02], 8)}
    Watched.seen = 0
    result = parts.duel(makers, torch.arange(20), 8, CPU)["one"]
    # Clean predictions of all; at both budgets, for the 18 right ones, seven steps and a verdict.
    assert sum(result["forwards"]) == Watched.seen == 20 + 2 * 18 * (7 + 1)
    assert sum(result["backwards"]) == 2 * 18 * 7
    assert len(result["seconds"]) == 3
    assert result["levels"][-2:] == [-1, -1]


def test_every_pass_of_the_evaluator_is_counted(parts: ModuleType, subject: Subject) -> None:
    attack = parts.lowered(ATTACKS["pgd"], {"steps": 5})
    contender = parts.Here(subject, CPU, attack, "pgd", [0.01, 0.05, 0.2], 10)
    assert contender.tally.forwards == 20
    contender.tally.forwards, Watched.seen = 0, 0
    spent: list[Any] = []
    sweep = contender.sweep.run

    def run(rows: Tensor) -> list[Any]:
        spent.extend(sweep(rows))
        return spent

    contender.sweep.run = run
    found = contender(torch.arange(20))
    # What the evaluator books on its samples; the copies' count would hold tracing too.
    assert contender.tally.forwards == sum(trail.forwards for trail in spent) > 18
    assert contender.tally.backwards == sum(trail.backwards for trail in spent) > 0
    assert contender.tally.forwards == Watched.seen
    assert found.levels.tolist()[:18] == [trail.lowest_level for trail in spent]
    assert found.levels.tolist()[18:] == [-1, -1]


def test_who_comes_later_gets_only_who_stands_and_nobody_wins_outside_the_budget(
    parts: ModuleType, theirs: ModuleType, subject: Subject
) -> None:
    asked: list[int] = []

    def member(move: float, kept: slice) -> Any:
        """Moves every pixel of the chosen images to its far end, by no more than `move`."""

        def attack(x: Tensor, _: Tensor) -> Tensor:
            asked.append(len(x))
            found = x.clone()
            far = 1.0 - x[kept].round()
            found[kept] = x[kept] + (far - x[kept]).clamp(-move, move)
            return found

        return lambda model, budget: attack

    members = {"cheat": member(1.0, slice(None)), "half": member(0.5, slice(0, 9))}
    there = theirs.There(subject, CPU, {**members, "rest": members["half"]}, [0.5], 20)
    found = there(torch.arange(20))
    fooled = found.stages["half"].fooled
    assert asked == [18, 18, 18 - fooled]
    assert 0 < fooled <= 9
    x, y = subject.split.batch(torch.arange(18))
    assert (subject.model(1.0 - x.round()).argmax(1) != y).any()  # a cheat that would have worked
    assert found.stages["cheat"].fooled == 0
    assert found.levels.tolist().count(-1) == 2
    assert sum(stage.fooled for stage in found.stages.values()) == found.levels.tolist().count(0)


def test_limits_reach_into_an_attack_of_several(parts: ModuleType) -> None:
    less = parts.lowered(standard(), {"steps": 3, "queries": 4})
    assert [getattr(attack, "steps", None) for _, attack in less.members] == [3, 3, 3, None]
    assert less.members[-1][1].queries == 4
    assert not isinstance(less, FlowAttack)


def test_from_measurement_to_page(
    program: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    docs, out = tmp_path / "docs", tmp_path / "numbers"
    docs.mkdir()
    (docs / "benchmarks.md").write_text("# Benchmarks\n\nBefore.\n")
    few = ["--images", "12", "--chunks", "2", "--steps", "3", "--queries", "9", "--out", str(out)]
    where = [*few, "--checkpoint", DIGITS, "--docs", str(docs)]
    measuring = ["--parts", "verdict", "pgd", "--budgets", "8/255,16/255", "--attack", "autoattack"]
    assert program.main([*where, *measuring]) == 0
    assert program.main([*where, "--parts", "curve", "--names", "the other"]) == 0
    assert program.main(["--render", "--out", str(out), "--docs", str(docs)]) == 0
    verdict = json.loads((out / "verdict.json").read_text())
    assert list(verdict) == ["digits_baseline, 8/255", "digits_baseline, 16/255"]
    for entry in verdict.values():
        here, there = (entry["contenders"][name] for name in ("here, autoattack", "torchattacks"))
        assert len(here["levels"]) == len(there["levels"]) == 12
        assert here["levels"].count(-1) == there["levels"].count(-1)
        assert all(len(one["seconds"]) == 2 for one in (here, there))
        kinds = ("forwards", "backwards")
        of_parts = [sum(stage[kind] for stage in there["stages"].values()) for kind in kinds]
        assert [sum(there[kind]) for kind in kinds] == [of_parts[0] + 12, of_parts[1]]
        measured = importlib.import_module("measured")
        for name in entry["contenders"]:
            after = measured.standing(entry, name)
            assert after == sorted(after, reverse=True)
            assert after[-1] == measured.robust(entry, name)[0]
    page = (docs / "benchmarks.md").read_text()
    assert page.startswith("# Benchmarks\n\nBefore.\n")
    for words in ("digits_baseline, 16/255", "the other", "FAB, 9 targets", "LOWERED LIMITS"):
        assert words in page
    assert str(tmp_path) not in page
    with Image.open(docs / "images" / "benchmark_evaluator.png") as figure:
        assert figure.width == 1600
    (docs / "benchmarks.md").write_text(page + "\nAfter.\n")
    assert program.main(["--render", "--out", str(out), "--docs", str(docs)]) == 0
    assert (docs / "benchmarks.md").read_text() == page + "\nAfter.\n"


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (["--budgets", "8/0"], "write 8/255"),
        (["--budgets", "8/255", "4/255"], "one for each of the 1 models"),
        (["--names", "a", "b"], "--names"),
        (["--attack", "nonsense"], "nonsense"),
        (["--checkpoint", "absent"], "there is no checkpoint at"),
    ],
)
def test_mistakes_are_told_in_a_sentence(
    program: ModuleType,
    wrong: list[str],
    told: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    few = ["--images", "4", "--out", str(tmp_path), "--docs", str(tmp_path)]
    assert program.main([*few, "--checkpoint", DIGITS, *wrong]) == 2
    assert told in capsys.readouterr().err


def test_nothing_measured_is_nothing_to_write_up(
    program: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program.main(["--render", "--out", str(tmp_path), "--docs", str(tmp_path)]) == 2
    assert "nothing measured" in capsys.readouterr().err
