"""Records: what an evaluation measured, one row a sample.

A folder of records holds two files:

* `records.parquet`, one row a sample: `index`, `label`, `clean_prediction`, `clean_confidence`; for
  each attack A `A/fooled/<budget>`, `A/smallest_budget` (null where robust), `A/broken_by`,
  `A/forwards`, `A/backwards`, `A/seconds`; the hashes of weights, data and configuration.
* `examples.parquet`, one row a picture: images as raw little-endian float32 bytes, and their shape.

What is the same in all rows is JSON in the metadata of both, under the key `robustbench_gpm`.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from .core import UserError
from .files import atomically, writable_folder

SCHEMA = 2
RECORDS, EXAMPLES = "records.parquet", "examples.parquet"
FOOLED = "{}/fooled/{:.6g}"  # a column, by attack and budget; six digits tell budgets apart
HASHES = ("weights_hash", "data_hash", "configuration_hash")
KEY = b"robustbench_gpm"
_SAMPLE = ("index", "label", "clean_prediction", "clean_confidence")
SPENT = ("forwards", "backwards", "seconds")
DESCRIPTION = ("name", "hyperparameters", "threat", "unit", "budgets", "labels")
_PREDICTED = ("clean_prediction", "clean_confidence", "prediction", "confidence")
_IMAGES = ("clean", "adversarial", "flow")
_EXAMPLE = ("index", "label", "attack", "budget", *_PREDICTED)


@dataclass(frozen=True, eq=False)
class AttackColumns:
    """What one attack did to each of N samples, in the order of `Records.index`.

    `smallest_budget` (N,) is nan where the sample was robust at all `budgets` (ascending, above 0),
    0.0 where it was wrong without any attack, else at most the largest budget: one of them, or,
    of an attack that looks for the nearest fooling image, its distance. `broken_by` names the
    attack that did it, or "clean", or None. Forward and backward passes and seconds are what each
    sample cost. Raises ValueError where these contradict each other.
    """

    name: str
    hyperparameters: str
    threat: str
    unit: str
    budgets: tuple[float, ...]
    labels: tuple[str, ...]
    smallest_budget: NDArray[np.float64]
    broken_by: list[str | None]
    forwards: NDArray[np.int64]
    backwards: NDArray[np.int64]
    seconds: NDArray[np.float64]

    def __post_init__(self) -> None:
        ladder = (0.0, *self.budgets)
        if len(ladder) == 1 or any(b <= a for a, b in itertools.pairwise(ladder)):
            raise ValueError(f"{self.name}: budgets {self.budgets} must ascend from above 0")
        if len(self.labels) != len(self.budgets):
            raise ValueError(f"{self.name}: {len(self.labels)} labels, {len(self.budgets)} budgets")
        smallest = self.smallest_budget
        columns = (self.broken_by, self.forwards, self.backwards, self.seconds)
        if any(len(column) != len(smallest) for column in columns):
            raise ValueError(f"{self.name}: its columns differ in length")
        if not (np.isnan(smallest) | ((smallest >= 0) & (smallest <= ladder[-1]))).all():
            raise ValueError(f"{self.name}: a smallest budget is outside 0 to {ladder[-1]}")

    def fooled(self) -> NDArray[np.bool_]:
        """Whether each sample was fooled at a budget or below it, shape (budgets, N)."""
        return self.smallest_budget <= np.array(self.budgets)[:, None]  # nan is never below

    def newly_fooled(self) -> NDArray[np.bool_]:
        """Whether a budget is the first of the list that fooled each sample, (budgets, N)."""
        below = np.array((0.0, *self.budgets[:-1]))[:, None]
        return self.fooled() & (self.smallest_budget > below)


@dataclass(frozen=True, eq=False)
class Example:
    """One sample kept for the picture: images (C,H,W) float32 in [0,1], flow (2,H,W) in pixels.

    A clip of T frames has them one after another as channels (T*C,H,W), and a flow that is each
    frame's own too (2T,H,W).
    """

    index: int
    label: int
    attack: str
    budget: float
    clean_prediction: int
    clean_confidence: float
    prediction: int
    confidence: float
    clean: NDArray[np.float32]
    adversarial: NDArray[np.float32]
    flow: NDArray[np.float32] | None


@dataclass(frozen=True, eq=False)
class Records:
    """All that was measured on one model, N samples long; `model` is the name drawn in legends.

    `flags` say why a number may not be believed: JSON, each with `name`, `measured`, `threshold`
    and `meaning`. `provenance` is JSON (lists, not tuples) with at least the three HASHES.
    Raises ValueError where the parts contradict each other.
    """

    model: str
    classes: tuple[str, ...]
    index: NDArray[np.int64]
    label: NDArray[np.int64]
    clean_prediction: NDArray[np.int64]
    clean_confidence: NDArray[np.float32]
    attacks: tuple[AttackColumns, ...]
    examples: tuple[Example, ...]
    provenance: dict[str, object]
    flags: tuple[dict[str, object], ...] = ()

    def __post_init__(self) -> None:
        lengths = {len(getattr(self, name)) for name in _SAMPLE}
        if len(lengths | {len(attack.smallest_budget) for attack in self.attacks}) != 1:
            raise ValueError("the columns of the records differ in length")
        missing = [name for name in HASHES if name not in self.provenance]
        if missing:
            raise ValueError(f"the provenance lacks {', '.join(missing)}")
        known = {(attack.name, budget) for attack in self.attacks for budget in attack.budgets}
        for example in self.examples:
            if (example.attack, example.budget) not in known:
                raise ValueError(f"example {example.index}: no {example.attack} at that budget")

    @property
    def right(self) -> NDArray[np.bool_]:
        """Which samples the model gets right without any attack, shape (N,)."""
        return np.equal(self.clean_prediction, self.label)

    def attack(self, name: str) -> AttackColumns:
        """The columns of the attack of that name. Raises KeyError if there is none."""
        return {attack.name: attack for attack in self.attacks}[name]


def write(records: Records, folder: Path) -> None:
    """Write both files into `folder`, made if need be; an error leaves what was there.

    Raises UserError if two columns would have the same name, or the folder cannot be written to.
    """
    metadata = {KEY: json.dumps(_describe(records), allow_nan=False).encode()}
    tables = (_sample_table(records), _example_table(records))
    writable_folder(folder, "--out")
    # Both are complete before either takes its place.
    with atomically(folder / RECORDS) as rows, atomically(folder / EXAMPLES) as examples:
        for table, path in zip(tables, (rows, examples), strict=True):
            described = table.replace_schema_metadata(metadata)
            pq.write_table(described, path, compression="zstd", write_page_checksum=True)


def _describe(records: Records) -> dict[str, object]:
    attacks = [{key: getattr(a, key) for key in DESCRIPTION} for a in records.attacks]
    about = {"model": records.model, "classes": records.classes, "attacks": attacks}
    return {"schema": SCHEMA, **about, "provenance": records.provenance, "flags": records.flags}


def _sample_table(records: Records) -> pa.Table:
    columns = [(name, pa.array(getattr(records, name))) for name in _SAMPLE]
    for attack in records.attacks:
        for budget, fooled in zip(attack.budgets, attack.fooled(), strict=True):
            columns.append((FOOLED.format(attack.name, budget), pa.array(fooled)))
        smallest = pa.array(attack.smallest_budget, from_pandas=True)  # nan becomes null
        columns.append((f"{attack.name}/smallest_budget", smallest))
        columns.append((f"{attack.name}/broken_by", pa.array(attack.broken_by, pa.string())))
        columns += [(f"{attack.name}/{key}", pa.array(getattr(attack, key))) for key in SPENT]
    everywhere = pa.array(np.zeros(len(records.index), np.int32))
    for key in HASHES:
        value = pa.array([str(records.provenance[key])])
        columns.append((key, pa.DictionaryArray.from_arrays(everywhere, value)))
    if len(dict(columns)) < len(columns):
        raise UserError(
            "two columns of the records would have the same name: give each attack once, and "
            "budgets that differ in their first six digits"
        )
    return pa.table(dict(columns))


def _example_table(records: Records) -> pa.Table:
    kinds = {"attack": pa.string(), "shape": pa.list_(pa.int64())}
    kinds |= dict.fromkeys(("budget", "clean_confidence", "confidence"), pa.float64())
    kinds |= dict.fromkeys(_IMAGES, pa.binary())
    rows = []
    for example in records.examples:
        row = {key: getattr(example, key) for key in (*_EXAMPLE, *_IMAGES)}
        for key in _IMAGES:
            row[key] = None if row[key] is None else np.asarray(row[key], "<f4").tobytes()
        rows.append({**row, "shape": list(example.clean.shape)})
    names = (*_EXAMPLE, "shape", *_IMAGES)
    schema = pa.schema([(name, kinds.get(name, pa.int64())) for name in names])
    return pa.Table.from_pylist(rows, schema=schema)


def read(folder: Path) -> Records:
    """The records in `folder`; raises UserError if absent, damaged or of another schema."""
    samples, described = _load(folder / RECORDS)
    examples, described_again = _load(folder / EXAMPLES)
    if described != described_again:
        files = f"{RECORDS} and {EXAMPLES} in {folder}"
        raise UserError(f"{files} come from different evaluations: evaluate again")
    try:
        return _assemble(samples, examples, described)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"the records in {folder} are damaged ({error}): evaluate again") from error


def _load(path: Path) -> tuple[pa.Table, dict[str, Any]]:
    if not path.is_file():
        raise UserError(f"there is no {path}: run evaluate.py with --out {path.parent} first")
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            table = file.read()
        described = json.loads(table.schema.metadata[KEY])
        schema = described["schema"]
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        message = f"{path} is damaged or holds no records of this project: evaluate again"
        raise UserError(message) from error
    if schema != SCHEMA:
        raise UserError(
            f"{path} has records of schema {schema} where this version reads {SCHEMA}: "
            "evaluate again, or read it with the version that wrote it"
        )
    return table, described


def _assemble(samples: pa.Table, examples: pa.Table, described: dict[str, Any]) -> Records:
    attacks = []
    for about in described["attacks"]:
        columns: dict[str, Any] = {key: about[key] for key in DESCRIPTION}
        columns |= {key: tuple(about[key]) for key in ("budgets", "labels")}
        for key in ("smallest_budget", *SPENT):
            columns[key] = samples[f"{about['name']}/{key}"].to_numpy().copy()
        columns["broken_by"] = samples[f"{about['name']}/broken_by"].to_pylist()
        attacks.append(AttackColumns(**columns))
    return Records(
        model=described["model"],
        classes=tuple(described["classes"]),
        **{name: samples[name].to_numpy().copy() for name in _SAMPLE},
        attacks=tuple(attacks),
        examples=tuple(_example(row) for row in examples.to_pylist()),
        provenance=described["provenance"],
        flags=tuple(described["flags"]),
    )


def _example(row: dict[str, Any]) -> Example:
    def image(key: str) -> NDArray[np.float32]:
        values = np.frombuffer(row[key], "<f4").astype(np.float32)  # a copy, to be written to
        return values.reshape(-1, *row["shape"][1:])

    clean, adversarial = (image(key) for key in _IMAGES[:2])
    flow = None if row["flow"] is None else image("flow")
    known = {key: row[key] for key in _EXAMPLE}
    return Example(**known, clean=clean, adversarial=adversarial, flow=flow)
