"""What was measured where predictions are graded: one row a sample, in `records.parquet`.

Columns: `index`; for each level L, which is `clean` or `A/<budget>` of an attack A, `L/score` and
`L/evidence` with `L/shape`, raw little-endian float32 numbers that all metrics are computed from;
`A/forwards`, `A/backwards`, `A/seconds`; the hashes of weights, data and configuration. Pictures
lie beside it, see `examples`. What is the same in all rows is JSON in the metadata of both files,
under the key `robustbench_gpm`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..core import UserError
from ..files import atomically, writable_folder
from ..records import DESCRIPTION, EXAMPLES, HASHES, KEY, RECORDS, SPENT
from ..tasks.base import Evidence
from .examples import Picture, pictures_of, table_of

GRADED = "graded"
SCHEMA = f"{GRADED} 2"


@dataclass(frozen=True, eq=False)
class Level:
    """Predictions on N samples at one budget: score (N,) in [0,1], and evidence for the metric."""

    score: NDArray[np.float32]
    evidence: list[Evidence]


@dataclass(frozen=True, eq=False)
class GradedAttack:
    """What one attack did: a level for each of its ascending budgets, and what each sample cost.

    At a budget, what counts for a sample is its lowest score at that budget or a smaller one.
    """

    name: str
    hyperparameters: str
    threat: str
    unit: str
    budgets: tuple[float, ...]
    labels: tuple[str, ...]
    levels: tuple[Level, ...]
    forwards: NDArray[np.int64]
    backwards: NDArray[np.int64]
    seconds: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class GradedRecords:
    """All that was measured on one model, N samples long.

    `labels_move` says whether a deformation was judged by labels that moved along with the pixels;
    `pictures` are some attacked samples, by the attack's name.
    """

    model: str
    task: str
    metric: str
    classes: tuple[str, ...]
    labels_move: bool
    index: NDArray[np.int64]
    clean: Level
    attacks: tuple[GradedAttack, ...]
    provenance: dict[str, object]
    flags: tuple[dict[str, object], ...] = ()
    pictures: Mapping[str, Sequence[Picture]] = field(default_factory=dict)

    def levels(self) -> Iterator[tuple[str, Level]]:
        """Every level by its name in the columns."""
        yield "clean", self.clean
        for attack in self.attacks:
            for budget, level in zip(attack.budgets, attack.levels, strict=True):
                yield f"{attack.name}/{budget:.6g}", level


def write(records: GradedRecords, folder: Path) -> None:
    """Write `records.parquet` and `examples.parquet`, of one evaluation, into `folder`.

    It is made if need be; an error leaves what was there. Raises UserError where nothing can be
    written.
    """
    about: dict[str, object] = {
        key: getattr(records, key) for key in ("model", "task", "metric", "classes", "labels_move")
    }
    about["attacks"] = [{key: getattr(a, key) for key in DESCRIPTION} for a in records.attacks]
    described = {"schema": SCHEMA, **about, "provenance": records.provenance}
    described["flags"] = records.flags
    columns: dict[str, Any] = {"index": pa.array(records.index)}
    for name, level in records.levels():
        columns[f"{name}/score"] = pa.array(level.score)
        raw = [np.ascontiguousarray(one, "<f4").tobytes() for one in level.evidence]
        columns[f"{name}/evidence"] = pa.array(raw, pa.binary())
        columns[f"{name}/shape"] = pa.array([list(e.shape) for e in level.evidence])
    for attack in records.attacks:
        for key in SPENT:
            columns[f"{attack.name}/{key}"] = pa.array(getattr(attack, key))
    for key in HASHES:
        columns[key] = pa.array([str(records.provenance[key])] * len(records.index))
    metadata = {KEY: json.dumps(described, allow_nan=False).encode()}
    tables = (pa.table(columns), table_of(records.pictures))
    writable_folder(folder, "--out")
    # Both are complete before either takes its place.
    with atomically(folder / RECORDS) as rows, atomically(folder / EXAMPLES) as examples:
        for table, path in zip(tables, (rows, examples), strict=True):
            described_table = table.replace_schema_metadata(metadata)
            pq.write_table(described_table, path, compression="zstd", write_page_checksum=True)


def read(folder: Path) -> GradedRecords:
    """The graded records in `folder`; raises UserError if absent, damaged or of another kind."""
    path = folder / RECORDS
    try:
        (table, about), (examples, same) = (_load(folder / name) for name in (RECORDS, EXAMPLES))
        if about["schema"] != SCHEMA:
            raise ValueError(f"its schema is {about['schema']}, not {SCHEMA}")
        if about != same:
            raise ValueError(f"{EXAMPLES} beside it is of another evaluation")
        return _assemble(table, examples, about)
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): evaluate again") from error


def holds_graded(folder: Path) -> bool:
    """Whether the records in `folder` are graded; no where there are none that can be read."""
    try:
        about = json.loads(pq.read_schema(folder / RECORDS).metadata[KEY])
        return str(about["schema"]).startswith(GRADED)
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError):
        return False


def _load(path: Path) -> tuple[pa.Table, dict[str, Any]]:
    if not path.is_file():
        raise UserError(f"there is no {path}: run evaluate.py with --out {path.parent} first")
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        table = file.read()
    return table, json.loads(table.schema.metadata[KEY])


def _assemble(table: pa.Table, examples: pa.Table, about: dict[str, Any]) -> GradedRecords:
    def level(name: str) -> Level:
        raw, shapes = table[f"{name}/evidence"].to_pylist(), table[f"{name}/shape"].to_pylist()
        evidence = [
            np.frombuffer(one, "<f4").reshape(shape) for one, shape in zip(raw, shapes, strict=True)
        ]
        return Level(table[f"{name}/score"].to_numpy().copy(), evidence)

    attacks = []
    for each in about["attacks"]:
        described = {**each, "budgets": tuple(each["budgets"]), "labels": tuple(each["labels"])}
        spent = {key: table[f"{each['name']}/{key}"].to_numpy().copy() for key in SPENT}
        levels = tuple(level(f"{each['name']}/{budget:.6g}") for budget in each["budgets"])
        attacks.append(GradedAttack(**described, levels=levels, **spent))
    return GradedRecords(
        model=about["model"],
        task=about["task"],
        metric=about["metric"],
        classes=tuple(about["classes"]),
        labels_move=about["labels_move"],
        index=table["index"].to_numpy().copy(),
        clean=level("clean"),
        attacks=tuple(attacks),
        provenance=about["provenance"],
        flags=tuple(about["flags"]),
        pictures=pictures_of(examples, [attack.name for attack in attacks]),
    )
