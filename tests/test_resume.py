"""A cut-off evaluation, started again, ends as if nothing had happened."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from whole_runs import ROOT, TRAINED, Run, assert_same, measured, one_sentence, run

from robustbench_gpm import cli
from robustbench_gpm.checkpoint import BEST
from robustbench_gpm.sweep import Sweep, Trail

__all__ = ["run"]  # a fixture

QUICK = ["--checkpoint", TRAINED, "--device", "cpu", "--limit", 24, "--batch_size", 4]
QUICK += ["--attack", "apgd", "flow-pgd", "--budgets", "apgd=8/255,0.1", "flow-pgd=0.1,0.4"]
QUICK += ["--examples", 2, "--no_checks"]
BATCHES = 12  # six of each attack
NAMES = {"curve.pdf", "curve.png", "examples.parquet", "examples.png", "records.parquet"}
NAMES |= {"deformations.png", "deformation.gif"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of an evaluation that nothing has cut off."""
    folder = tmp_path_factory.mktemp("whole")
    assert cli.evaluate([*map(str, QUICK), "--out", str(folder)]) == 0
    return folder


def cut_after(batches: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Ctrl-C in the batch after so many; what is returned takes it back."""
    every, done = Sweep.run, list[int]()

    def interrupted(self: Sweep, rows: Tensor) -> list[Trail]:
        if len(done) == batches:
            raise KeyboardInterrupt
        done.append(len(rows))
        return every(self, rows)

    monkeypatch.setattr(Sweep, "run", interrupted)
    return lambda: monkeypatch.setattr(Sweep, "run", every)


def batches_in(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "unfinished").glob("[!.]*.npz"))


@pytest.mark.parametrize("out", ["kept", None])
def test_a_killed_evaluation_goes_on_to_the_same_records(
    out: str | None, run: Run, whole: Path, tmp_path: Path
) -> None:
    asked = [*QUICK, *(["--out", out] if out else [])]
    folder = tmp_path / (out or "results/digits_baseline")
    door = [sys.executable, str(ROOT / "evaluate.py"), *map(str, asked)]
    quiet = {"env": {**os.environ, "OMP_NUM_THREADS": "1"}, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(door, cwd=tmp_path, **quiet) as process:  # type: ignore[call-overload]
        while process.poll() is None and not batches_in(folder):
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    assert 1 <= len(batches_in(folder)) < BATCHES
    assert not (folder / "summary.json").exists()
    code, told, error = run(*asked)
    assert code == 0, error
    assert f"going on with the evaluation in {folder.relative_to(tmp_path)}" in told
    assert f"results: {folder.relative_to(tmp_path)}\n" in told
    assert_same(folder, whole)
    assert not list(tmp_path.rglob("unfinished"))


def test_ctrl_c_keeps_the_finished_batches_and_they_are_not_done_again(
    run: Run, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    restore = cut_after(8, monkeypatch)
    code, _, error = run(*QUICK, "--out", "cut")
    assert code == 130
    assert "interrupted" in error
    assert "kept" in error
    assert len(batches_in(tmp_path / "cut")) == 8
    restore()
    cut_after(BATCHES - 8, monkeypatch)
    assert run(*QUICK, "--out", "cut")[0] == 0
    assert_same(tmp_path / "cut", whole)
    assert set(measured(tmp_path / "cut")["files"]) == NAMES | {"summary.json"}


def test_the_checks_of_an_evaluation_that_goes_on_are_those_of_a_whole_one(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = [flag for flag in QUICK if flag != "--no_checks"]
    checked[checked.index("--limit") + 1] = 8
    restore = cut_after(1, monkeypatch)
    assert run(*checked, "--out", "cut")[0] == 130
    restore()
    for out in ("cut", "whole"):
        assert run(*checked, "--out", out)[0] == 0
    assert_same(tmp_path / "cut", tmp_path / "whole")


def test_a_damaged_batch_is_done_again(
    run: Run, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    restore = cut_after(8, monkeypatch)
    run(*QUICK, "--out", "cut")
    restore()
    for number, content in ((1, b""), (3, b"PK nonsense")):
        (tmp_path / f"cut/unfinished/apgd-{number}.npz").write_bytes(content)
    cut_after(BATCHES - 8 + 2, monkeypatch)
    assert run(*QUICK, "--out", "cut")[0] == 0
    assert_same(tmp_path / "cut", whole)


def test_what_was_started_with_something_else_is_not_gone_on_with(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(TRAINED, mine)
    quick = ["--checkpoint", mine, *QUICK[2:], "--out", "cut"]
    restore = cut_after(2, monkeypatch)
    assert run(*quick)[0] == 130
    restore()
    kept = {path: path.read_bytes() for path in (tmp_path / "cut").rglob("*.*")}
    others: dict[str, list[object]] = {
        "another configuration": ["--budgets", "0.1"],
        "another data and configuration": ["--split", "validation"],
        "another shard": ["--shard", "1/2"],
        "another batch size": ["--batch_size", 5],
        "another configuration:": ["--seed", 1],
        "another data and configuration and batch size": ["--limit", 20, "--batch_size", 5],
    }
    for words, flags in others.items():
        one_sentence(*run(*quick, *flags), f"cut holds an unfinished evaluation with {words}")
    state = load_file(mine / BEST)
    name = next(name for name, tensor in state.items() if tensor.is_floating_point())
    save_file({**state, name: state[name] * 1.001}, mine / BEST)
    one_sentence(*run(*quick), "cut holds an unfinished evaluation with another weights:")
    assert {path: path.read_bytes() for path in (tmp_path / "cut").rglob("*.*")} == kept
    save_file({n: torch.as_tensor(t) for n, t in state.items()}, mine / BEST)
    assert run(*quick)[0] == 0


def test_by_default_another_evaluation_takes_another_folder(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = [*QUICK, "--limit", 8, "--examples", 0]
    restore = cut_after(2, monkeypatch)
    assert run(*small)[0] == 130
    restore()
    restore = cut_after(2, monkeypatch)
    assert run(*small, "--seed", 1)[0] == 130
    restore()
    results = tmp_path / "results"
    assert sorted(path.name for path in results.iterdir()) == [
        "digits_baseline",
        "digits_baseline-2",
    ]
    assert run(*small, "--seed", 1)[1].rstrip().endswith("results/digits_baseline-2/curve.png")
    assert len(batches_in(results / "digits_baseline")) == 2
    assert run(*small)[1].rstrip().endswith("results/digits_baseline/curve.png")
    assert run(*small)[1].rstrip().endswith("results/digits_baseline-3/curve.png")


def test_two_models_cut_off_at_the_second_go_on_in_the_same_folder(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = ROOT / "checkpoints/digits_baseline", ROOT / "checkpoints/digits_fgr300"
    asked = ["--attack", "pgd", "--budgets", "8/255", "--limit", 8, "--batch_size", 4]
    asked += ["--examples", 0, "--no_checks", "--checkpoint", *both]
    restore = cut_after(3, monkeypatch)
    assert run(*asked)[0] == 130
    restore()
    (folder,) = (tmp_path / "results").iterdir()
    assert run(*asked)[0] == 0
    assert list((tmp_path / "results").iterdir()) == [folder]
    assert not list(folder.rglob("unfinished"))


def test_a_refused_evaluation_leaves_nothing_behind(run: Run, tmp_path: Path) -> None:
    assert run(*QUICK, "--limit", 4, "--batch_size", 4, "--shard", "3/3", "--out", "out")[0] == 2
    assert not (tmp_path / "out/unfinished").exists()
