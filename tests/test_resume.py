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

from robustbench_gpm.checkpoint import BEST
from robustbench_gpm.sweep import Sweep, Trail

__all__ = ["run"]  # a fixture

COMMON = ["--checkpoint", TRAINED, "--device", "cpu", "--limit", 24, "--batch_size", 4]
QUICK = [*COMMON, "--attack", "pgd", "stadv", "--budgets", "pgd=8/255,0.1", "stadv=0.1,0.4"]
NAMES = {"curve.pdf", "curve.png", "examples.parquet", "examples.png", "records.parquet"}


def cut_after(batches: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Ctrl-C in the batch after so many; what is returned takes it back."""
    whole, done = Sweep.run, list[int]()

    def interrupted(self: Sweep, rows: Tensor) -> list[Trail]:
        if len(done) == batches:
            raise KeyboardInterrupt
        done.append(len(rows))
        return whole(self, rows)

    monkeypatch.setattr(Sweep, "run", interrupted)
    return lambda: monkeypatch.setattr(Sweep, "run", whole)


def batches_in(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "unfinished").glob("[!.]*.npz"))


@pytest.mark.parametrize("out", ["kept", None])
def test_a_killed_evaluation_goes_on_to_the_same_records(
    out: str | None, run: Run, tmp_path: Path
) -> None:
    slow = [*COMMON, "--attack", "apgd-t", "flow-pgd", "--budgets", "apgd-t=4/255,0.1", "0.4"]
    slow = [*slow[:-1], "flow-pgd=0.1,0.3", *(["--out", out] if out else [])]
    folder = tmp_path / (out or "results/digits_baseline")
    door = [sys.executable, str(ROOT / "evaluate.py"), *map(str, slow)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        door, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL
    ) as process:
        while process.poll() is None and not batches_in(folder):
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    kept = batches_in(folder)
    assert 1 <= len(kept) < 12
    assert not (folder / "summary.json").exists()
    code, told, error = run(*slow)
    assert code == 0, error
    assert f"going on with the evaluation in {folder.relative_to(tmp_path)}" in told
    assert f"results: {folder.relative_to(tmp_path)}\n" in told
    assert run(*slow, "--out", "uninterrupted")[0] == 0
    assert_same(folder, tmp_path / "uninterrupted")
    assert not list(tmp_path.rglob("unfinished"))


def test_ctrl_c_keeps_the_finished_batches_and_they_are_not_done_again(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    restore = cut_after(8, monkeypatch)
    code, _, error = run(*QUICK, "--out", "cut")
    assert code == 130
    assert "interrupted" in error
    assert "kept" in error
    assert len(batches_in(tmp_path / "cut")) == 8  # of six of each attack
    restore()
    four_more = cut_after(4, monkeypatch)
    assert run(*QUICK, "--out", "cut")[0] == 0
    four_more()
    assert run(*QUICK, "--out", "whole")[0] == 0
    assert_same(tmp_path / "cut", tmp_path / "whole")
    assert set(measured(tmp_path / "cut")["files"]) == NAMES | {"summary.json"}


def test_a_damaged_batch_is_done_again(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    restore = cut_after(8, monkeypatch)
    run(*QUICK, "--out", "cut")
    restore()
    for number, content in ((1, b""), (3, b"PK nonsense")):
        (tmp_path / f"cut/unfinished/pgd-{number}.npz").write_bytes(content)
    six_more = cut_after(6, monkeypatch)
    assert run(*QUICK, "--out", "cut")[0] == 0
    six_more()
    assert run(*QUICK, "--out", "whole")[0] == 0
    assert_same(tmp_path / "cut", tmp_path / "whole")


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
    restore = cut_after(2, monkeypatch)
    assert run(*QUICK)[0] == 130
    assert run(*QUICK, "--seed", 1)[0] == 130
    restore()
    results = tmp_path / "results"
    assert sorted(path.name for path in results.iterdir()) == [
        "digits_baseline",
        "digits_baseline-2",
    ]
    assert run(*QUICK, "--seed", 1)[1].rstrip().endswith("results/digits_baseline-2/curve.png")
    assert len(batches_in(results / "digits_baseline")) == 2
    assert run(*QUICK)[1].rstrip().endswith("results/digits_baseline/curve.png")
    assert run(*QUICK)[1].rstrip().endswith("results/digits_baseline-3/curve.png")
