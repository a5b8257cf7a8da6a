"""benchmarks/training_cost.py covers every objective, counts right and draws legibly."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.collections import LineCollection
from matplotlib.image import imread
from test_records import columns, five
from test_report import assert_nothing_is_cut

from robustbench_gpm import cli, train_command
from robustbench_gpm.checkpoint import read_card
from robustbench_gpm.fields import plain
from robustbench_gpm.flags import build
from robustbench_gpm.objectives import AROUND, PENALTIES
from robustbench_gpm.objectives.adversarial import METHODS
from robustbench_gpm.records import Records

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))  # they import one another by bare names
program: Any = importlib.import_module("training_cost")
steps: Any = importlib.import_module("training_cost_steps")
drawing: Any = importlib.import_module("training_cost_figure")
sys.path.remove(str(ROOT / "benchmarks"))

NAMES = list(steps.VARIANTS)
Points = list[tuple[float, float]]


def values(name: str) -> dict[str, Any]:
    found: dict[str, Any] = steps.values_of(steps.VARIANTS[name].flags.split())
    return found


def test_every_objective_of_the_suite_has_a_row() -> None:
    asked = [values(name) for name in NAMES]
    for name in PENALTIES:
        assert any(build(PENALTIES[name], each).weight > 0 for each in asked), name
    for name in set(AROUND) - {"accumulation"}:  # which trains as if it were not there
        assert any(build(AROUND[name], each).active for each in asked), name
    assert set(METHODS) <= {each["adversarial"] for each in asked}
    assert {each["igr_norm"] for each in asked} == {"l1", "l2", "l2sq"}
    assert {each["penalty_mode"] for each in asked} == {"exact", "finite_difference", "lazy"}


def test_every_row_is_another_objective_in_a_folder_and_a_family_of_its_own() -> None:
    objectives = {repr(steps.objective_of(values(name), 19)[0]) for name in NAMES}
    assert len(objectives) == len({program.safe_name(name) for name in NAMES}) == len(NAMES)
    assert {variant.family for variant in steps.VARIANTS.values()} == set(drawing.FAMILIES)


@pytest.mark.parametrize("name", NAMES)
def test_main_takes_the_flags_for_the_objective_that_is_timed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    class CaughtError(Exception):
        pass

    def trainer(*parts: Any, **_: Any) -> None:
        seen.extend(parts)
        raise CaughtError

    monkeypatch.setattr(train_command, "Trainer", trainer)
    flags = steps.VARIANTS[name].flags.split()
    with pytest.raises(CaughtError):
        train_command.run([*flags, "--epochs", "18", "--out", str(tmp_path)], "main.py")
    _, objective, _, plan, _, _, card = seen
    bench = steps.Bench([name])
    timed, replays = steps.objective_of(values(name), bench.batches)
    assert timed == objective
    assert innermost(timed).batches == innermost(objective).batches
    assert steps.steps_of(18, replays) == plan.epochs * plan.replays / 18
    assert card.configuration == plain(
        steps.values_of([*flags, "--epochs", "18", "--out", str(tmp_path)])
    )


def innermost(objective: Any) -> Any:
    while hasattr(objective, "inner"):
        objective = objective.inner
    return objective


def test_passes_are_those_that_are_known() -> None:
    known = {
        "baseline": (1, 1),
        "igr l1": (1, 2),
        "igr l1 fd": (2, 2),
        "igr l1 lazy": (1, 1.25),
        "sam": (2, 2),
        "free 4": (1, 1),
    }
    bench = steps.Bench(known)
    assert {name: bench.passes(name) for name in known} == known
    assert bench.seconds("sam") > 0
    assert all(p.isfinite().all() for p in bench.models["sam"].parameters())


def test_a_step_is_set_against_the_plain_one_of_its_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    order: list[str] = []

    def seconds(_bench: object, name: str) -> float:
        order.append(name)
        slower = 4.0 ** ((len(order) + 1) // 2)  # so does the machine become, pair by pair
        return slower * {"sam": 3.0, "edge": 5.0}.get(name, 1.0)

    monkeypatch.setattr(steps.Bench, "seconds", seconds)
    monkeypatch.setattr(steps.Bench, "passes", lambda *_: (1.0, 2.0))
    costs = steps.measure(["edge", "sam"], rounds=3)
    assert order == ["baseline", "edge", "baseline", "sam"] * 3
    assert {name: cost.ratios for name, cost in costs.items()} == {
        "edge": [5.0] * 3,
        "sam": [3.0] * 3,
    }


def measured(fooled: int) -> Records:
    """Five samples, four right, of which `fooled` fall to apgd-t and one to flow-vertex."""
    nan = math.nan
    intensity = [*([0.1] * fooled), *([nan] * (4 - fooled))]
    intensity.insert(1, 0.0)
    return dataclasses.replace(
        five(),
        attacks=(
            columns("apgd-t", intensity, (0.1,)),
            columns("flow-vertex", [nan, 0.0, nan, nan, 0.155], (0.155,)),
        ),
    )


def test_the_table_says_what_was_measured() -> None:
    step = steps.StepCost([2.0, 3.0, 2.5], 4.0, 4.25)
    row = program.row_of("pgd 3", [measured(1), measured(3)], step, 1.5)
    assert row.cost == (3.75, 3.0, 4.5)
    assert row.clean == pytest.approx((80, 80, 80))
    assert row.intensity == pytest.approx((40, 20, 60))
    assert row.location == pytest.approx((60, 60, 60))
    line = program.table([row], {"pgd 3": step})[-1]
    assert line == (
        "| pgd 3 | 80.0 (80.0-80.0) | 40.0 (20.0-60.0) | 60.0 (60.0-60.0) | 3.75 (3.00-4.50) "
        f"| 4 + 4.25 | `{steps.PGD3}` |"
    )


def test_doubts_are_told_of_whom_they_concern() -> None:
    note, flag = ({"name": "zero_loss", "kind": kind} for kind in ("note", "doubt"))
    sound = dataclasses.replace(measured(1), flags=(note,))
    doubtful = dataclasses.replace(measured(1), flags=(note, flag))
    assert program.doubts({"sam": [sound, sound]}) == []
    told = program.doubts({"sam": [sound, sound], "edge": [sound, doubtful]})
    assert [line for line in told if line.startswith("-")] == ["- `edge`, 1 of 2 seeds: zero loss"]


COORDINATE = st.integers(0, 8).map(float)  # coarse, so that many tie


@given(st.lists(st.tuples(COORDINATE, COORDINATE), min_size=1, max_size=20))
def test_the_front_is_whom_nobody_beats(points: Points) -> None:
    places = drawing.front(points)

    def beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
        return one != other and one[0] <= other[0] and one[1] >= other[1]

    unbeaten = {p for p in points if not any(beats(other, p) for other in points)}
    assert {points[i] for i in places} == unbeaten
    assert len(places) == len(unbeaten)
    costs, accuracies = zip(*(points[i] for i in places), strict=True)
    assert list(costs) == sorted(costs)
    assert list(accuracies) == sorted(accuracies)


def many_rows() -> list[Any]:
    """As many rows as there are variants, crowded around a cost of two."""
    rng, spread = np.random.default_rng(1), drawing.Spread
    rows = []
    for number, (name, variant) in enumerate(steps.VARIANTS.items()):
        cost = 1.0 if number == 0 else float(2.2 * rng.lognormal(0, 0.35))
        shares = [float(rng.uniform(20, 80)) for _ in range(3)]
        accuracies = [spread(share, share - 4, share + 2) for share in shares]
        rows.append(drawing.Row(name, variant.family, spread(cost, cost, cost), *accuracies))
    return rows


def test_every_point_is_drawn_where_it_belongs_and_named_legibly(tmp_path: Path) -> None:
    rows = many_rows()
    figure = drawing.figure_of(rows, program.PANELS)
    figure.draw_without_rendering()
    assert_nothing_is_cut(figure)
    for axes, panel in zip(figure.axes, program.PANELS, strict=True):
        accuracies = [getattr(row, panel.shown) for row in rows]
        points = {
            (line.get_xdata()[0], line.get_ydata()[0])
            for line in axes.lines
            if line.get_marker() in drawing.MARKERS
        }
        assert points == {(r.cost.middle, a.middle) for r, a in zip(rows, accuracies, strict=True)}
        bars = [c.get_segments()[0] for c in axes.collections if isinstance(c, LineCollection)]
        assert [(bar[0][1], bar[1][1]) for bar in bars] == [
            (a.least, a.largest) for a in accuracies
        ]
        labels = {text.get_text(): text.get_window_extent() for text in axes.texts}
        assert set(labels) == set(NAMES)
        for one, other in itertools.combinations(labels, 2):
            assert not labels[one].overlaps(labels[other]), f"{one} over {other}"
    program.save(figure, tmp_path / "f.png")
    assert imread(tmp_path / "f.png").shape[1] == 200 * drawing.SIZE[0]


def test_from_training_to_page_and_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[str] = []

    def run(command: str, *words: object) -> None:
        ran.append(command)
        door = cli.train if command == "main.py" else cli.evaluate
        assert door([str(word) for word in words]) == 0

    monkeypatch.setattr(program, "run", run)
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "results.md").write_text("# Results\n\nBefore.\n")
    places = ["--checkpoints_dir", str(tmp_path / "c"), "--results_dir", str(tmp_path / "r")]
    few = ["--variants", "free 4", "--limit", "8", "--rounds", "1", "--seeds", "5"]
    asked = [*places, *few, "--docs", str(docs), "--epochs", "4"]
    assert program.main(asked) == 0
    assert ran == ["main.py", "evaluate.py"]
    page = (docs / "results.md").read_text()
    assert page.startswith("# Results\n\nBefore.\n")
    for words in ("--seeds 5 --epochs 4 --limit 8", "| free 4 |", "images/training_cost.png"):
        assert words in page
    assert (docs / "images" / "training_cost.png").exists()
    card = read_card(tmp_path / "c" / "seed5" / "free-4")
    assert (len(card.history), card.configuration["seed"]) == (1, 5)

    assert program.main(asked) == 0
    assert len(ran) == 2
    assert (docs / "results.md").read_text() == page
    assert program.main([*asked, "--limit", "9"]) == 0
    assert ran[2:] == ["evaluate.py"]
    assert program.main([*asked, "--epochs", "8"]) == 2
    assert "trained by other flags" in capsys.readouterr().err


def test_a_command_that_fails_is_told_in_a_sentence() -> None:
    with pytest.raises(program.UserError, match=r"^-c .* failed: out of luck$"):
        program.run("-c", "import sys; print('much'); sys.exit('at work\\nout of luck')")
