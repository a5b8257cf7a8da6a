"""Attacked samples kept for the pictures: `examples.parquet`, one row a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Picture:
    """One attacked sample for the pictures, as arrays; `flow` is empty where no pixel moved.

    `index` is the sample's, as in the records. image and adversarial (C,H,W) in [0,1]; truth, clean
    and attacked are labels or predictions, as the task draws them.
    """

    index: int
    budget: float
    image: NDArray[np.float32]
    adversarial: NDArray[np.float32]
    flow: NDArray[np.float32]
    truth: NDArray[Any]
    clean: NDArray[Any]
    attacked: NDArray[Any]


ARRAYS = ("image", "adversarial", "flow", "truth", "clean", "attacked")
_FACTS = {"attack": pa.string(), "index": pa.int64(), "budget": pa.float64()}
_PARTS = {"": pa.binary(), "/shape": pa.list_(pa.int64()), "/dtype": pa.string()}
_SCHEMA = pa.schema(
    [*_FACTS.items(), *((f"{name}{end}", kind) for name in ARRAYS for end, kind in _PARTS.items())]
)


def table_of(pictures: Mapping[str, Sequence[Picture]]) -> pa.Table:
    """The pictures of each attack, by its name, as a table.

    Columns: `attack`, `index`, `budget`; for each array A of a picture `A`, its numbers as raw
    bytes, with `A/shape` and numpy's word for their kind, `A/dtype`.
    """
    rows = []
    for attack, each in pictures.items():
        for picture in each:
            row: dict[str, object] = {"attack": attack}
            row |= {"index": picture.index, "budget": picture.budget}
            for name in ARRAYS:
                array = np.ascontiguousarray(getattr(picture, name))
                little = array.astype(array.dtype.newbyteorder("<"))
                row |= {name: little.tobytes(), f"{name}/shape": list(array.shape)}
                row[f"{name}/dtype"] = little.dtype.str
            rows.append(row)
    return pa.Table.from_pylist(rows, schema=_SCHEMA)


def pictures_of(table: pa.Table, attacks: Sequence[str]) -> dict[str, tuple[Picture, ...]]:
    """What `table_of` made a table of; an attack without pictures has none."""
    found: dict[str, list[Picture]] = {name: [] for name in attacks}
    for row in table.to_pylist():
        arrays = {
            name: np.frombuffer(row[name], row[f"{name}/dtype"]).reshape(row[f"{name}/shape"])
            for name in ARRAYS
        }
        found[row["attack"]].append(Picture(row["index"], row["budget"], **arrays))
    return {name: tuple(each) for name, each in found.items()}
