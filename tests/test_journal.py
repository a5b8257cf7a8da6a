"""The journal of finished batches: what is put in comes back, and only to its owner."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from robustbench_gpm.core import UserError
from robustbench_gpm.journal import WHAT, Journal, Outcome, belongs, read_header
from robustbench_gpm.showcase import Candidate

HEADER: dict[str, object] = {
    "weights_hash": "0a",
    "data_hash": "1b",
    "configuration_hash": "2c",
    "attacks": [["pgd", "PGD(steps=20)", [0.1]]],
    "shard": None,
    "batch_size": 4,
}
OUTCOMES = [
    Outcome(7, 0.1, "pgd", 3, 2, 0.25),
    Outcome(9, math.nan, None, 30, 20, 1.5),
    Outcome(12, 0.0, "clean", 0, 0, 0.0),
]


def pictures() -> list[Candidate]:
    image = torch.rand(1, 8, 8)
    return [
        Candidate(7, 0.1, 0.08, 3, 0.75, image, None),
        Candidate(9, 0.4, 0.4, 1, 0.5, image / 2, torch.randn(2, 8, 8)),
    ]


def in_words(found: object) -> str:
    return repr(found)  # nan is not equal to itself, its word is


@pytest.mark.parametrize("attack", ["pgd", "torchattacks:PGDL2", "autoattack-plus-l1"])
def test_a_batch_comes_back_as_it_was_put_in(attack: str, tmp_path: Path) -> None:
    kept = pictures()
    Journal(tmp_path, HEADER).add(attack, 3, OUTCOMES, kept)
    again = Journal(tmp_path, HEADER)
    assert again.resumed
    found = again.read(attack, 3)
    assert found is not None
    assert in_words(found[0]) == in_words(OUTCOMES)
    for one, other in zip(found[1], kept, strict=True):
        assert (one.row, one.budget, one.size) == (other.row, other.budget, other.size)
        assert (one.prediction, one.confidence) == (other.prediction, other.confidence)
        assert torch.equal(one.adversarial, other.adversarial)
        assert (one.flow is None) == (other.flow is None)
        assert one.flow is None or (other.flow is not None and torch.equal(one.flow, other.flow))
    assert again.read(attack, 2) is None
    assert again.read("fgsm", 3) is None


def test_a_batch_of_nobody_comes_back_too(tmp_path: Path) -> None:
    """As where the model is wrong about all of it."""
    journal = Journal(tmp_path, HEADER)
    journal.add("pgd", 0, [], [])
    assert journal.read("pgd", 0) == ([], [])


def test_nothing_is_left_once_it_is_closed(tmp_path: Path) -> None:
    journal = Journal(tmp_path, HEADER)
    journal.add("pgd", 0, OUTCOMES, pictures())
    assert belongs(tmp_path, HEADER)
    journal.close()
    assert not list(tmp_path.iterdir())
    assert not belongs(tmp_path, HEADER)
    assert not Journal(tmp_path, HEADER).resumed


@pytest.mark.parametrize("name", WHAT)
def test_another_owner_is_refused_and_nothing_is_touched(name: str, tmp_path: Path) -> None:
    Journal(tmp_path, HEADER).add("pgd", 0, OUTCOMES, pictures())
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    other = {**HEADER, name: "other"}
    with pytest.raises(UserError, match=f"unfinished evaluation with another {WHAT[name]}: go on"):
        Journal(tmp_path, other)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before
    assert belongs(tmp_path, HEADER)
    assert not belongs(tmp_path, other)
    both = {**other, "batch_size": 5, "shard": "1/2"}
    with pytest.raises(UserError, match=f" and {WHAT['batch_size']}|{WHAT['shard']} and "):
        Journal(tmp_path, both)


def test_a_run_that_finished_no_batch_stands_in_nobodys_way(tmp_path: Path) -> None:
    Journal(tmp_path, HEADER)
    other = {**HEADER, "shard": "1/2"}
    assert not Journal(tmp_path, other).resumed
    assert read_header(tmp_path) is None
    assert not list(tmp_path.iterdir())


def test_batches_without_a_header_are_nobodys(tmp_path: Path) -> None:
    Journal(tmp_path, HEADER).add("pgd", 0, OUTCOMES, pictures())
    (tmp_path / "unfinished/header.json").write_text("{")
    journal = Journal(tmp_path, {**HEADER, "weights_hash": "other"})
    assert not journal.resumed
    assert journal.read("pgd", 0) is None


def test_a_damaged_batch_is_as_good_as_none(tmp_path: Path) -> None:
    journal = Journal(tmp_path, HEADER)
    journal.add("pgd", 0, OUTCOMES, pictures())
    (path,) = (tmp_path / "unfinished").glob("*.npz")
    whole = path.read_bytes()
    for kept in (0, 1, 30, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:kept])
        assert journal.read("pgd", 0) is None, kept
    wanted = in_words(journal_read(journal, path, whole))
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(whole), 200):  # a flipped bit is noticed, or does no harm
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(rng.integers(8))
        found = journal_read(journal, path, bytes(flipped))
        assert found is None or in_words(found) == wanted, place


def journal_read(journal: Journal, path: Path, content: bytes) -> object:
    path.write_bytes(content)
    return journal.read("pgd", 0)
