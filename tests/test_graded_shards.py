"""Graded evaluations cut up, cut off and put together: what one process would have left."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from graded_subjects import MADE, N, subject
from whole_runs import ROOT, Run, assert_same, measured, one_sentence, run

from robustbench_gpm import cli
from robustbench_gpm.attacks import ATTACKS
from robustbench_gpm.core import UserError
from robustbench_gpm.graded import GradedEvaluator, GradedRecords, merged, read, write
from robustbench_gpm.journal import WHAT, Journal
from robustbench_gpm.shards import Shard
from robustbench_gpm.sweep import AttackPlan

__all__ = ["run"]  # a fixture

tasks = pytest.mark.parametrize("task", MADE)
PLANS = (
    AttackPlan("pgd", replace(ATTACKS["pgd"], steps=6), (0.02, 0.1)),  # type: ignore[type-var]
    AttackPlan("flow-pgd", replace(ATTACKS["flow-pgd"], steps=5), (0.5,)),  # type: ignore[type-var]
)


def evaluator(task: str, **options: Any) -> GradedEvaluator:
    given = {"batch_size": 2, "examples": 3, **options}
    return GradedEvaluator(subject(task), torch.device("cpu"), **given)


def evaluated(task: str, journal: Journal | None = None, **options: Any) -> GradedRecords:
    running = evaluator(task, **options)
    for plan in PLANS:
        running.attack(plan, journal)
    return running.records()


def assert_equal(one: GradedRecords, other: GradedRecords, tolerance: float = 0.0) -> None:
    """All that was measured, but for the time it took; pictures as well."""
    np.testing.assert_array_equal(one.index, other.index)
    ours, theirs = dict(one.levels()), dict(other.levels())
    assert ours.keys() == theirs.keys()
    for name, level in ours.items():
        np.testing.assert_allclose(level.score, theirs[name].score, atol=tolerance)
        for a, b in zip(level.evidence, theirs[name].evidence, strict=True):
            np.testing.assert_allclose(a, b, atol=tolerance)
    for attack, same in zip(one.attacks, other.attacks, strict=True):
        np.testing.assert_array_equal(attack.forwards, same.forwards)
        np.testing.assert_array_equal(attack.backwards, same.backwards)
    assert one.pictures.keys() == other.pictures.keys()
    for name, pictures in one.pictures.items():
        assert [p.index for p in pictures] == [p.index for p in other.pictures[name]]
        for picture, same_picture in zip(pictures, other.pictures[name], strict=True):
            for part in ("image", "adversarial", "flow", "truth", "clean", "attacked"):
                a, b = getattr(picture, part), getattr(same_picture, part)
                np.testing.assert_allclose(a, b, atol=tolerance)


@tasks
def test_an_attack_has_something_to_lower(task: str) -> None:
    """Else all the comparisons below would say nothing."""
    records = evaluated(task)
    clean, (small, large) = records.clean.score, records.attacks[0].levels
    assert clean.mean() > small.score.mean() > large.score.mean()
    assert len(records.pictures["pgd"]) == 3


@tasks
@pytest.mark.parametrize("name", ["square", "smoothed-pgd"])
def test_attacks_on_a_margin_raise_the_task_s_own_loss(task: str, name: str) -> None:
    few = {"queries": 40} if name == "square" else {"steps": 3, "draws": 2}
    attack = replace(ATTACKS[name], **few)  # type: ignore[type-var]
    running = evaluator(task)
    running.attack(AttackPlan(name, attack, (0.2,)))
    records = running.records()
    assert records.attacks[0].levels[0].score.mean() < records.clean.score.mean() - 0.01


@tasks
@pytest.mark.parametrize("parts", [2, 3, 4])
def test_shards_merge_to_the_whole(task: str, parts: int, tmp_path: Path) -> None:
    whole = evaluated(task)
    shares = []
    for part in reversed(range(1, parts + 1)):
        write(evaluated(task, shard=Shard(part, parts)), tmp_path / str(part))
        shares.append(read(tmp_path / str(part)))
    assert sum(len(share.index) for share in shares) == N
    again = merged(shares)
    assert_equal(again, whole)
    assert again.provenance == whole.provenance
    write(again, tmp_path / "merged")
    assert_equal(read(tmp_path / "merged"), whole)


def test_shards_that_do_not_fit_are_refused() -> None:
    one, two = (evaluated("multilabel", shard=Shard(part, 2)) for part in (1, 2))
    for given, words in (
        ([one], "each of the 2 shards once: 1 were given"),
        ([one, two, two], "each of the 2 shards once: 3 were given"),
        ([one, one], "each of the 2 shards once: 2 were given"),
        ([one, evaluated("multilabel")], "whole: only shards can be merged"),
        ([one, replace(two, attacks=two.attacks[:1])], "unfinished"),
        ([one, evaluated("multilabel", shard=Shard(2, 2), batch_size=3)], "--batch_size"),
    ):
        with pytest.raises(UserError, match=words):
            merged(given)
    for name in ("weights_hash", "data_hash", "configuration_hash"):
        other = replace(two, provenance={**two.provenance, name: "y"})
        with pytest.raises(UserError, match="different evaluations"):
            merged([one, other])


@tasks
@pytest.mark.parametrize("size", [1, 3, 16])
def test_the_batch_size_changes_nothing(task: str, size: int) -> None:
    """Up to rounding, which no score of these models is within."""
    assert_equal(evaluated(task, batch_size=size), evaluated(task, batch_size=7), 1e-4)


@tasks
def test_a_cut_off_evaluation_goes_on_to_the_same_records(task: str, tmp_path: Path) -> None:
    header = dict.fromkeys(WHAT, "x")
    cut = evaluator(task)
    cut.batches = cut.batches[:2]
    cut.attack(PLANS[0], Journal(tmp_path, header))
    journal = Journal(tmp_path, header)
    assert journal.resumed
    assert_equal(evaluated(task, journal), evaluated(task))


NET = """
import sys
sys.path.insert(0, {tests!r})
from graded_subjects import Segmenter
"""
PARTS = ("1/3", "2/3", "3/3")


@pytest.fixture
def quick(run: Run, tmp_path: Path) -> list[object]:
    """Flags that evaluate a small segmenter; the working folder is empty but for its file."""
    (tmp_path / "net.py").write_text(NET.format(tests=str(ROOT / "tests")))
    flags: list[object] = ["--model", "net.py:Segmenter", "--data_name", "digit_scenes"]
    flags += ["--device", "cpu", "--attack", "pgd", "flow-pgd", "--budgets", "pgd=0.02,0.1"]
    flags += ["flow-pgd=0.5", "--set", "steps=3", "--limit", 7, "--batch_size", 2]
    return [*flags, "--examples", 3]


def test_three_shards_merge_by_the_command(run: Run, quick: list[object], tmp_path: Path) -> None:
    quick.append("--no_checks")
    assert run(*quick, "--out", "whole")[0] == 0
    for text in PARTS:
        assert run(*quick, "--shard", text)[0] == 0
    folders = [f"results/net.py-Segmenter-shard{number}of3" for number in (3, 1, 2)]
    code, told, error = run("merge", *folders, "--out", "merged")
    assert code == 0, error
    assert "under pgd, mIoU in %: clean: " in told
    assert "results: merged\n" in told
    assert told.rstrip().endswith("figure: merged/curve.png")
    assert_same(tmp_path / "merged", tmp_path / "whole")
    assert {"curve.png", "examples.png"} <= set(measured(tmp_path / "merged")["files"])

    def refused(*given: object, words: str) -> None:
        one_sentence(*run("merge", *given, "--out", "no"), words)
        assert not list(tmp_path.glob("no/*"))

    refused(*folders[:2], words="merge needs each of the 3 shards once: 2 were given")
    refused(*folders, folders[0], words="merge needs each of the 3 shards once: 4 were given")
    refused(folders[0], "nowhere", words="nowhere")
    refused("merged", words="are whole: only shards can be merged")
    digits = ["--model", "digits_cnn", "--data_name", "digits", "--attack", "fgsm", "--no_checks"]
    few = ["--limit", 4, "--batch_size", 2, "--budgets", 0.1]
    assert run(*digits, *few, "--shard", "3/3", "--out", "digits")[0] == 2  # too few for three
    assert run(*digits, *few, "--shard", "2/2", "--out", "digits")[0] == 0
    refused(*folders[:2], "digits", words="these records are of different tasks")
    other = run(*quick, "--shard", "3/3", "--labels", "move", "--out", "moved")
    assert other[0] == 0
    refused(*folders[1:], "moved", words="different evaluations")
    one_sentence(*run(*quick, "--shard", "5/5", "--out", "none"), "too few to share")


def test_a_killed_evaluation_goes_on(run: Run, quick: list[object], tmp_path: Path) -> None:
    asked = [*quick, "--no_checks", "--out"]
    assert run(*asked, "whole")[0] == 0
    slow = [sys.executable, str(ROOT / "evaluate.py"), *map(str, asked), "kept"]
    quiet = {"env": {**os.environ, "OMP_NUM_THREADS": "1"}, "stderr": subprocess.DEVNULL}
    kept = tmp_path / "kept/unfinished"
    with subprocess.Popen(slow, cwd=tmp_path, **quiet) as process:  # type: ignore[call-overload]
        while process.poll() is None and not list(kept.glob("[!.]*.npz")):
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    assert 1 <= len(list(kept.glob("[!.]*.npz"))) < 8
    one_sentence(*run(*asked, "kept", "--seed", 1), "another configuration")
    one_sentence(*run(*asked, "kept", "--shard", "1/2"), "another shard")
    code, told, error = run(*asked, "kept")
    assert code == 0, error
    assert "going on with the evaluation in kept" in told
    assert_same(tmp_path / "kept", tmp_path / "whole")
    assert not kept.exists()


def test_several_checkpoints_at_once_are_each_as_alone(run: Run, tmp_path: Path) -> None:
    quick = ["--task", "segmentation", "--limit", "8", "--epochs", "1", "--device", "cpu"]
    for seed in "01":
        assert cli.train([*quick, "--seed", seed, "--out", f"net{seed}"]) == 0
    flags = ["--attack", "pgd", "--budgets", 0.1, "--set", "steps=2", "--no_checks"]
    flags += ["--limit", 5, "--batch_size", 3, "--device", "cpu"]
    assert run("--checkpoint", "net0", "net1", *flags, "--out", "both")[0] == 0
    for name in ("net0", "net1"):
        shutil.rmtree(tmp_path / "alone", ignore_errors=True)
        assert run("--checkpoint", name, *flags, "--out", "alone")[0] == 0
        assert_equal(read(tmp_path / "alone"), read(tmp_path / "both" / name))
    assert not np.array_equal(
        read(tmp_path / "both/net0").clean.score, read(tmp_path / "both/net1").clean.score
    )
    assert (tmp_path / "both/curve.png").stat().st_size > 5000


def test_the_records_have_the_columns_that_the_docs_say(tmp_path: Path) -> None:
    records = evaluated("segmentation")
    write(records, tmp_path)
    rows = pq.read_table(tmp_path / "records.parquet").to_pydict()
    docs = (ROOT / "docs/tasks.md").read_text()
    levels = {"clean", "pgd/0.02", "pgd/0.1", "flow-pgd/0.5"}
    for column, values in rows.items():
        level, _, what = column.rpartition("/")
        told = f"L/{what}" if level in levels else f"A/{what}" if level else what
        assert f"`{told}`" in docs, column
        assert len(values) == N
    np.testing.assert_array_equal(rows["pgd/0.1/score"], records.attacks[0].levels[1].score)
    evidence = np.frombuffer(rows["clean/evidence"][2], "<f4").reshape(rows["clean/shape"][2])
    np.testing.assert_array_equal(evidence, records.clean.evidence[2])
    pictures = pq.read_table(tmp_path / "examples.parquet").to_pydict()
    assert pictures["attack"] == ["pgd"] * 3 + ["flow-pgd"] * 3
    assert set(pictures["index"]) <= set(rows["index"])
