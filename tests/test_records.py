"""What is measured is stored whole, read back equal, and summarised as a hand count says."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustbench_gpm import records as subject
from robustbench_gpm.core import UserError
from robustbench_gpm.records import AttackColumns, Example, Records, read, write
from robustbench_gpm.summary import proportion, summarise, write_summary

LINF = tuple(n / 255 for n in (1, 2, 4, 8, 16, 32))
CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
FLOW = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
PROVENANCE: dict[str, Any] = {
    "weights_hash": "0a1b",
    "data_hash": "2c3d",
    "configuration_hash": "4e5f",
    "configuration": {"attack": ["pgd", "stadv"], "limit": 5},
    "seed": 0,
}


def columns(name: str, smallest: list[float], budgets: tuple[float, ...] = LINF) -> AttackColumns:
    """An attack's columns; sample i cost i + 1 forwards, i backwards and half a second."""
    flow = budgets == FLOW
    n = len(smallest)
    return AttackColumns(
        name=name,
        hyperparameters=f"{name.upper()}(steps=20)",
        threat="flow" if flow else "linf",
        unit="pixels" if flow else "image units",
        budgets=budgets,
        labels=tuple(f"{b:.4g} px" if flow else f"{b * 255:.4g}/255" for b in budgets),
        smallest_budget=np.array(smallest, np.float64),
        broken_by=["clean" if s == 0 else None if math.isnan(s) else name for s in smallest],
        forwards=np.arange(1, n + 1),
        backwards=np.arange(n),
        seconds=np.full(n, 0.5),
    )


def example(attack: str, budget: float, channels: int = 1, size: int = 8, seed: int = 0) -> Example:
    rng = np.random.default_rng(seed)
    clean = rng.random((channels, size, size), np.float32)
    flow = None
    if attack != "pgd":
        flow = (budget * rng.uniform(-1, 1, (2, size, size))).astype(np.float32)
    changed = np.clip(clean + rng.choice((-8 / 255, 8 / 255), clean.shape), 0, 1)
    return Example(
        seed, 3, attack, budget, 3, 0.98, 5, 0.61, clean, changed.astype(np.float32), flow
    )


def synthetic(
    model: str = "baseline",
    attacks: tuple[str, ...] = ("pgd", "stadv"),
    n: int = 60,
    seed: int = 0,
    channels: int = 1,
) -> Records:
    """Records as an evaluation would leave them: every attack on n samples, two examples each."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 10, n)
    right = rng.random(n) < 0.95
    made = []
    for name in attacks:
        budgets = LINF if name == "pgd" else FLOW
        strength = rng.lognormal(math.log(budgets[3]), 0.8, n)
        place = np.searchsorted(budgets, strength)
        smallest = np.where(right, np.append(budgets, np.nan)[place], 0.0)
        made.append(columns(name, smallest.tolist(), budgets))
    return Records(
        model=model,
        classes=CLASSES,
        index=np.arange(n),
        label=label,
        clean_prediction=np.where(right, label, (label + 1) % 10),
        clean_confidence=rng.random(n, np.float32),
        attacks=tuple(made),
        examples=tuple(
            example(a.name, a.budgets[3], channels, seed=i) for a in made for i in (0, 1)
        ),
        provenance=PROVENANCE,
    )


def five() -> Records:
    """Five samples that fall at 1/255, without any attack, at 4/255, at 32/255 and never."""
    b, nan = LINF, math.nan
    return dataclasses.replace(
        synthetic(n=5),
        label=np.array([0, 1, 2, 3, 4]),
        clean_prediction=np.array([0, 9, 2, 3, 4]),
        examples=(),
        attacks=(
            columns("pgd", [b[0], 0.0, b[2], b[5], nan]),
            columns("stadv", [nan, 0.0, nan, nan, nan], FLOW),
        ),
    )


def same(a: Any, b: Any) -> bool:
    """Equal in type, shape and value, all the way down."""
    if type(a) is not type(b):
        return False
    if dataclasses.is_dataclass(a):
        fields = dataclasses.fields(a)
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    if isinstance(a, tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_read_is_what_was_written(tmp_path: Path, channels: int) -> None:
    records = synthetic(channels=channels)
    assert not same(records, synthetic(channels=channels, seed=1))  # `same` can say no
    write(records, tmp_path / "made" / "on the way")
    assert same(read(tmp_path / "made" / "on the way"), records)


def test_records_without_examples_are_read_back(tmp_path: Path) -> None:
    records = dataclasses.replace(synthetic(), examples=())
    write(records, tmp_path)
    assert same(read(tmp_path), records)


def test_parquet_has_a_row_a_sample_and_the_named_columns(tmp_path: Path) -> None:
    write(five(), tmp_path)
    table = pq.read_table(tmp_path / "records.parquet")
    assert table.num_rows == 5
    names = ["index", "label", "clean_prediction", "clean_confidence"]
    for attack, budgets in (
        ("pgd", "0.00392157 0.00784314 0.0156863 0.0313725 0.0627451 0.12549"),
        ("stadv", "0.05 0.1 0.2 0.4 0.8 1.6"),
    ):
        names += [f"{attack}/fooled/{budget}" for budget in budgets.split()]
        names += [f"{attack}/{column}" for column in ("smallest_budget", "broken_by")]
        names += [f"{attack}/{column}" for column in ("forwards", "backwards", "seconds")]
    assert table.column_names == [*names, "weights_hash", "data_hash", "configuration_hash"]
    assert table["pgd/fooled/0.0156863"].to_pylist() == [True, True, True, False, False]
    assert table["pgd/fooled/0.12549"].to_pylist() == [True, True, True, True, False]
    assert table["pgd/smallest_budget"].to_pylist() == [LINF[0], 0.0, LINF[2], LINF[5], None]
    assert table["pgd/broken_by"].to_pylist() == ["pgd", "clean", "pgd", "pgd", None]
    assert table["weights_hash"].to_pylist() == ["0a1b"] * 5


def test_examples_hold_raw_little_endian_floats_and_their_shape(tmp_path: Path) -> None:
    records = synthetic(channels=3)
    write(records, tmp_path)
    rows = pq.read_table(tmp_path / "examples.parquet").to_pylist()
    assert [row["attack"] for row in rows] == ["pgd", "pgd", "stadv", "stadv"]
    assert rows[0]["shape"] == [3, 8, 8]
    assert rows[0]["flow"] is None
    pixels = np.frombuffer(rows[2]["adversarial"], "<f4").reshape(3, 8, 8)
    np.testing.assert_array_equal(pixels, records.examples[2].adversarial)
    flow = np.frombuffer(rows[2]["flow"], "<f4").reshape(2, 8, 8)
    np.testing.assert_array_equal(flow, records.examples[2].flow)


def test_summary_is_what_a_hand_count_gives() -> None:
    summary: dict[str, Any] = summarise(five())
    assert (summary["n"], summary["clean_accuracy"]) == (5, 0.8)
    pgd, stadv = summary["curves"]["pgd"], summary["curves"]["stadv"]
    assert pgd["robust_accuracy"] == [0.6, 0.6, 0.4, 0.4, 0.4, 0.2]
    assert stadv["robust_accuracy"] == [0.8] * 6
    assert (pgd["threat"], pgd["unit"], pgd["labels"][3]) == ("linf", "image units", "8/255")
    assert (stadv["threat"], stadv["unit"], stadv["budgets"]) == ("flow", "pixels", list(FLOW))
    assert pgd["hyperparameters"] == "PGD(steps=20)"
    one = {"forwards": 15, "backwards": 10, "seconds": 2.5}
    both = {"forwards": 30, "backwards": 20, "seconds": 5.0}
    assert summary["cost"] == {**both, "by_attack": {"pgd": one, "stadv": one}}
    assert summary["provenance"] == PROVENANCE


def test_a_distance_counts_for_the_first_budget_that_holds_it() -> None:
    nearest = columns("fmn", [0.0, 0.5 * LINF[0], 1.5 * LINF[0], LINF[1], math.nan])
    assert nearest.fooled().sum(1).tolist() == [2, 4, 4, 4, 4, 4]
    assert nearest.newly_fooled()[:2].nonzero()[1].tolist() == [1, 2, 3]


def test_a_sample_wrong_when_clean_is_never_robust() -> None:
    """Even where an attack's column was left saying that nothing fooled it."""
    records = dataclasses.replace(five(), attacks=(columns("pgd", [math.nan] * 5),))
    summary: dict[str, Any] = summarise(records)
    assert summary["curves"]["pgd"]["robust_accuracy"] == [0.8] * 6


def test_summary_file_is_the_summary(tmp_path: Path) -> None:
    path = write_summary(five(), tmp_path)
    assert path == tmp_path / "summary.json"
    assert json.loads(path.read_text(encoding="utf-8")) == summarise(five())


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
@settings(max_examples=30, deadline=None)
def test_interval_is_wilsons(counts: tuple[int, int]) -> None:
    k, n = counts
    p, z = k / n, 1.959963984540054
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    share = proportion(np.arange(n) < k)
    assert share == pytest.approx((p, centre - half, centre + half), abs=1e-12)
    assert 0 <= share.low <= share.value <= share.high <= 1


@given(st.lists(st.tuples(st.booleans(), st.sampled_from([*LINF, math.nan])), min_size=1))
@settings(max_examples=40, deadline=None)
def test_curves_fall_from_the_clean_accuracy(samples: list[tuple[bool, float]]) -> None:
    n = len(samples)
    records = dataclasses.replace(
        synthetic(n=n),
        label=np.zeros(n, np.int64),
        clean_prediction=np.array([0 if right else 1 for right, _ in samples]),
        attacks=(columns("pgd", [budget if right else 0.0 for right, budget in samples]),),
        examples=(),
    )
    summary: dict[str, Any] = summarise(records)
    curve = [summary["clean_accuracy"], *summary["curves"]["pgd"]["robust_accuracy"]]
    assert all(later <= earlier for earlier, later in itertools.pairwise(curve))
    never = sum(right and math.isnan(budget) for right, budget in samples)
    assert curve[-1] == pytest.approx(never / n)


def test_no_sample_is_a_sentence() -> None:
    with pytest.raises(UserError, match="evaluate at least one"):
        summarise(synthetic(n=0))


@pytest.mark.parametrize("failing_call", [1, 2])
def test_a_failing_write_leaves_the_old_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing_call: int
) -> None:
    old = synthetic()
    write(old, tmp_path)
    calls, honest = [], pq.write_table

    def full_disk(table: Any, path: Path, **options: Any) -> None:
        calls.append(path)
        honest(table, path, **options)
        if len(calls) == failing_call:
            raise OSError("no space left on device")

    monkeypatch.setattr(pq, "write_table", full_disk)
    with pytest.raises(OSError, match="no space"):
        write(synthetic("another", seed=1), tmp_path)
    assert same(read(tmp_path), old)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["examples.parquet", "records.parquet"]


def test_a_failing_summary_leaves_the_old_one(tmp_path: Path) -> None:
    before = write_summary(five(), tmp_path).read_bytes()
    unspeakable = {**PROVENANCE, "device": object()}
    with pytest.raises(TypeError):
        write_summary(dataclasses.replace(five(), provenance=unspeakable), tmp_path)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [before]


def test_absent_records_are_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no .*records\.parquet: run evaluate\.py"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["records.parquet", "examples.parquet"])
@pytest.mark.parametrize("damage", ["truncated", "text"])
def test_damaged_files_are_a_sentence(tmp_path: Path, name: str, damage: str) -> None:
    write(synthetic(), tmp_path)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:-100] if damage == "truncated" else b"not a record")
    with pytest.raises(UserError, match="is damaged") as caught:
        read(tmp_path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["records.parquet", "examples.parquet"])
def test_a_flipped_byte_never_changes_a_number(tmp_path: Path, name: str) -> None:
    records = synthetic()
    write(records, tmp_path)
    path = tmp_path / name
    content = path.read_bytes()
    footer = int.from_bytes(content[-8:-4], "little")
    caught = 0
    for place in range(4, len(content) - footer - 8, 41):
        changed = bytearray(content)
        changed[place] ^= 0xFF
        path.write_bytes(changed)
        try:  # statistics, and what is derived when read, may change without harm
            assert same(read(tmp_path), records)
        except UserError:
            caught += 1
    assert caught > 20


def test_any_parquet_is_not_records(tmp_path: Path) -> None:
    write(synthetic(), tmp_path)
    path = tmp_path / "records.parquet"
    pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)
    with pytest.raises(UserError, match="no records of this project"):
        read(tmp_path)


def test_a_missing_column_is_a_sentence(tmp_path: Path) -> None:
    write(synthetic(), tmp_path)
    path = tmp_path / "records.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["pgd/seconds"]), path)
    with pytest.raises(UserError, match="pgd/seconds"):
        read(tmp_path)


def test_another_schema_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(subject, "SCHEMA", 99)
        write(synthetic(), tmp_path)
    with pytest.raises(UserError, match="schema 99 where this version reads 2"):
        read(tmp_path)


def test_files_of_two_evaluations_are_not_mixed(tmp_path: Path) -> None:
    write(synthetic("one"), tmp_path / "one")
    write(synthetic("two"), tmp_path / "two")
    (tmp_path / "one" / "examples.parquet").replace(tmp_path / "two" / "examples.parquet")
    with pytest.raises(UserError, match="different evaluations"):
        read(tmp_path / "two")


def test_a_folder_that_cannot_be_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write to the folder .*--out"):
        write(synthetic(), tmp_path / "file" / "results")


def test_columns_of_one_name_are_a_sentence(tmp_path: Path) -> None:
    twice = (columns("pgd", [0.0] * 5), columns("pgd", [0.0] * 5))
    with pytest.raises(UserError, match="same name"):
        write(dataclasses.replace(five(), attacks=twice), tmp_path)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"budgets": LINF[::-1]}, "must ascend"),
        ({"budgets": (0.0, *LINF[1:])}, "must ascend"),
        ({"labels": ("8/255",)}, "1 labels, 6 budgets"),
        ({"seconds": np.zeros(4)}, "differ in length"),
        ({"smallest_budget": np.full(5, 1.01 * LINF[-1])}, "smallest budget"),
        ({"smallest_budget": np.full(5, -0.1)}, "smallest budget"),
    ],
)
def test_contradictory_columns_are_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(columns("pgd", [math.nan] * 5), **wrong)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"label": np.zeros(4, np.int64)}, "differ in length"),
        ({"attacks": (columns("pgd", [0.0]),)}, "differ in length"),
        ({"provenance": {"weights_hash": "0a"}}, "data_hash, configuration_hash"),
        ({"examples": (example("pgd", 0.7),)}, "no pgd at that budget"),
    ],
)
def test_contradictory_records_are_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(five(), **wrong)
