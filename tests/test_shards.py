"""Shards of one evaluation, put together, are what one process would have left."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_records import synthetic
from whole_runs import TRAINED, Run, assert_same, measured, one_sentence, run

from robustbench_gpm import cli
from robustbench_gpm.core import UserError
from robustbench_gpm.records import Records
from robustbench_gpm.shards import Shard, merged

__all__ = ["run"]  # a fixture

QUICK = ["--checkpoint", TRAINED, "--device", "cpu", "--limit", 30, "--batch_size", 4]
QUICK += ["--attack", "pgd", "flow-pgd", "--budgets", "pgd=8/255,0.1", "flow-pgd=0.1,0.2,0.4"]
QUICK += ["--examples", 2, "--no_checks"]
PARTS = ("1/3", "2/3", "3/3")


def evaluate(folder: Path, *more: object) -> Path:
    arguments = [*QUICK, *more, "--out", folder]
    assert cli.evaluate([str(argument) for argument in arguments]) == 0
    return folder


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("parts")
    return [evaluate(folder / text[0], "--shard", text) for text in PARTS]


def test_three_shards_merge_to_the_records_of_one_process(
    run: Run, parts: list[Path], tmp_path: Path
) -> None:
    whole = evaluate(tmp_path / "whole")
    code, told, error = run("merge", *reversed(parts), "--out", "merged")
    assert code == 0, error
    assert "results: merged\n" in told
    assert told.rstrip().endswith("figure: merged/curve.png")
    assert_same(tmp_path / "merged", whole)
    assert (tmp_path / "merged/curve.png").stat().st_size > 5000
    sizes = [len(measured(folder)["rows"]["index"]) for folder in parts]
    assert sizes == [12, 10, 8]  # eight batches: three, three (the last of two images) and two
    assert run("merge", tmp_path / "merged", "--out", "again")[0] == 2


def test_shards_have_folders_of_their_own_and_the_same_checks(run: Run, tmp_path: Path) -> None:
    few = [*QUICK[:4], "--limit", 4, "--batch_size", 1, "--attack", "fgsm", "--budgets", 0.2]
    assert run(*few, "--out", "whole")[0] == 0
    for text in ("1/2", "2/2"):
        assert run(*few, "--shard", text)[0] == 0
    folders = ["results/digits_baseline-shard1of2", "results/digits_baseline-shard2of2"]
    assert run("merge", *folders, "--out", "merged")[0] == 0
    assert_same(tmp_path / "merged", tmp_path / "whole")
    assert measured(tmp_path / "merged")["about"]["provenance"]["checks"]["forwards"] > 0


def test_what_does_not_fit_is_refused_in_a_sentence(
    run: Run, parts: list[Path], tmp_path: Path
) -> None:
    def refused(*folders: Path, words: str) -> None:
        one_sentence(*run("merge", *folders, "--out", "merged"), words)
        assert not list(tmp_path.glob("merged/*"))

    refused(*parts[:2], words="merge needs each of the 3 shards once: 2 were given")
    refused(*parts, parts[0], words="merge needs each of the 3 shards once: 4 were given")
    refused(parts[0], parts[0], parts[1], words="each of the 3 shards once: 3 were given")
    refused(parts[0], tmp_path / "nowhere", words="nowhere")
    one_sentence(*run("merge", *parts, "--out", parts[0]), "is one of the shards")
    (tmp_path / "link").symlink_to(parts[1])
    one_sentence(*run("merge", *parts, "--out", "link"), "is one of the shards")
    one_sentence(*run("merge", *parts), "required: out")
    one_sentence(*run("merge", "--out", "merged"), "shards")

    foreign = ["--attack", "pgd", "--examples", 0]
    other = evaluate(tmp_path / "other", "--shard", "3/3", *foreign)
    refused(*parts[:2], other, words="different evaluations")
    cut = evaluate(tmp_path / "cut", "--shard", "3/3", "--batch_size", 5)
    refused(*parts[:2], cut, words="same --batch_size")


@pytest.mark.parametrize("text", ["0/3", "4/3", "2", "a/b", "2/", "-1/3", "1.5/3", "2/4/8"])
def test_what_is_no_share_is_refused(text: str, run: Run) -> None:
    given = run(*QUICK, f"--shard={text}")
    one_sentence(*given, f"--shard {text} is not of the form 2/4 (the second of four)")


def test_too_many_shards_are_refused_and_leave_nothing_in_the_way(run: Run) -> None:
    for text in ("9/9", "1000/1000"):
        one_sentence(*run(*QUICK, "--shard", text, "--out", "out"), "too few to share")
    assert run(*QUICK[:4], "--limit", 2, "--no_checks", "--attack", "fgsm", "--out", "out")[0] == 0


@given(total=st.integers(1, 60), size=st.integers(1, 20), count=st.integers(1, 9))
def test_every_batch_falls_to_one_shard(total: int, size: int, count: int) -> None:
    batches = len(torch.arange(total).split(size))
    dealt = []
    for part in range(1, count + 1):
        if part > batches:
            with pytest.raises(UserError, match="too few to share"):
                Shard(part, count).batches(total, size)
        else:
            dealt += Shard(part, count).batches(total, size)
    whole = Shard().batches(total, size)
    assert sorted(number for number, _ in dealt) == [number for number, _ in whole]
    for number, rows in dealt:
        assert torch.equal(rows, whole[number][1])


def share_of(whole: Records, part: int, count: int, size: int) -> Records:
    rows = torch.cat([r for _, r in Shard(part, count).batches(len(whole.index), size)]).numpy()
    shard = {"part": part, "parts": count, "total": len(whole.index), "batch_size": size}
    names = ("smallest_budget", "forwards", "backwards", "seconds")
    return dataclasses.replace(
        whole,
        **{
            name: getattr(whole, name)[rows]
            for name in ("index", "label", "clean_prediction", "clean_confidence")
        },
        attacks=tuple(
            dataclasses.replace(
                attack,
                **{name: getattr(attack, name)[rows] for name in names},
                broken_by=[attack.broken_by[row] for row in rows],
            )
            for attack in whole.attacks
        ),
        examples=(),
        provenance={**whole.provenance, "shard": shard, "examples": 2},
    )


@settings(max_examples=25, deadline=None)
@given(
    size=st.integers(1, 12),
    count=st.integers(1, 5),
    order=st.permutations(range(5)),
)
def test_shares_of_records_merge_to_the_whole(size: int, count: int, order: list[int]) -> None:
    whole = synthetic(n=60)
    shares = [share_of(whole, part + 1, count, size) for part in order if part < count]
    again = merged(shares)
    for name in ("index", "label", "clean_prediction", "clean_confidence"):
        np.testing.assert_array_equal(getattr(again, name), getattr(whole, name))
    for ours, theirs in zip(again.attacks, whole.attacks, strict=True):
        np.testing.assert_array_equal(ours.smallest_budget, theirs.smallest_budget)
        np.testing.assert_array_equal(ours.forwards, theirs.forwards)
        assert ours.broken_by == theirs.broken_by
    assert again.provenance["shard"] is None


def test_shards_that_were_cut_off_between_attacks_are_refused() -> None:
    shares = [share_of(synthetic(n=60), part, 2, 5) for part in (1, 2)]
    fewer = dataclasses.replace(shares[1], attacks=shares[1].attacks[:1])
    with pytest.raises(UserError, match="some of these shards are unfinished"):
        merged([shares[0], fewer])
    with pytest.raises(UserError, match="some of these shards are unfinished"):
        merged([dataclasses.replace(shares[0], attacks=shares[0].attacks[:1]), fewer])
    elsewhere = dataclasses.replace(
        shares[1],
        provenance={
            **shares[1].provenance,
            "shard": {"part": 2, "parts": 3, "total": 60, "batch_size": 5},
        },
    )
    with pytest.raises(UserError, match="cut differently"):
        merged([shares[0], elsewhere])
    with pytest.raises(UserError, match="whole: only shards can be merged"):
        merged([synthetic(n=60)])
