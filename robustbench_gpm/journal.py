"""What an evaluation has finished so far, kept so that a cut-off run goes on where it was.

A folder `unfinished` beside the results holds `header.json`, which says whose work it is, and one
file for each attack and finished batch, written atomically: a kill loses the batch under way.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from torch import from_numpy

from .core import UserError
from .files import atomically, safe_name, write_text
from .showcase import Candidate

Stored = TypeVar("Stored")
UNFINISHED = "unfinished"
HEADER = "header.json"
WHAT = {
    "weights_hash": "weights",
    "data_hash": "data",
    "configuration_hash": "configuration",
    "attacks": "version of the attacks",
    "shard": "shard",
    "batch_size": "batch size",
}


class Outcome(NamedTuple):
    """What an attack did to one sample: see `records.AttackColumns`."""

    row: int
    smallest: float
    broken_by: str | None
    forwards: int
    backwards: int
    seconds: float


class Journal:
    """The finished batches of one subject."""

    def __init__(self, results: Path, header: Mapping[str, object]) -> None:
        """Start one for the results folder, or go on with the one that is there.

        Raises UserError if that one is of other weights, data or configuration, and has finished a
        batch: a run that was refused at its start stands in nobody's way.
        """
        self.folder = results / UNFINISHED
        self._header = mine = {name: header[name] for name in WHAT}
        theirs = read_header(results)
        self.resumed = theirs is not None and any(self.folder.glob("[!.]*.npz"))
        if theirs is None or not self.resumed:
            self.close()  # batches that nobody knows the owner of, or a header without any
        else:
            other = [words for name, words in WHAT.items() if theirs.get(name) != mine[name]]
            if WHAT["configuration_hash"] in other and WHAT["attacks"] in other:
                other.remove(WHAT["attacks"])  # which follow from it
            if other:
                raise UserError(
                    f"{results} holds an unfinished evaluation with another {' and '.join(other)}: "
                    f"go on with what it was started with, remove {self.folder}, or choose another "
                    "--out"
                )

    def read(self, attack: str, batch: int) -> tuple[list[Outcome], list[Candidate]] | None:
        """A finished batch and its pictures; None where it has yet to be done."""
        return self.load(attack, batch, _unpack)

    def load(
        self, attack: str, batch: int, unpack: Callable[[Mapping[str, Any]], Stored]
    ) -> Stored | None:
        """A finished batch by its arrays; None where it has yet to be done."""
        path = self._path(attack, batch)
        if not path.is_file():
            return None
        try:
            with np.load(path, allow_pickle=False) as stored:
                return unpack(stored)
        except Exception:  # zip files can be damaged in many ways: done again
            return None

    def add(
        self,
        attack: str,
        batch: int,
        outcomes: Sequence[Outcome],
        pictures: Sequence[Candidate],
    ) -> None:
        """Keep a finished batch."""
        self.store(attack, batch, _pack(outcomes, pictures))

    def store(self, attack: str, batch: int, arrays: Mapping[str, Any]) -> None:
        """Keep a finished batch as arrays; with the first, whose it is."""
        if not (self.folder / HEADER).is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(self.folder / HEADER, json.dumps(self._header) + "\n")
        with atomically(self._path(attack, batch)) as path, path.open("wb") as file:
            np.savez(file, **arrays)

    def close(self) -> None:
        """Everything is in the records now."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, attack: str, batch: int) -> Path:
        return self.folder / f"{safe_name(attack)}-{batch}.npz"


def read_header(results: Path) -> dict[str, object] | None:
    """Whose unfinished work lies in a results folder; None where there is none."""
    try:
        text = (results / UNFINISHED / HEADER).read_text(encoding="utf-8")
        header: dict[str, object] = json.loads(text)
    except (OSError, ValueError):
        return None
    return header


def belongs(results: Path, header: Mapping[str, object]) -> bool:
    """Whether the unfinished work in a results folder is the one that `header` describes."""
    theirs = read_header(results)
    return theirs is not None and all(theirs.get(name) == header[name] for name in WHAT)


def _pack(outcomes: Sequence[Outcome], pictures: Sequence[Candidate]) -> dict[str, Any]:
    columns = list(zip(*outcomes, strict=True)) or [()] * len(Outcome._fields)
    packed: dict[str, Any] = dict(zip(Outcome._fields, map(np.array, columns), strict=True))
    packed["broken_by"] = np.array([outcome.broken_by or "" for outcome in outcomes], dtype=str)
    plain = [(p.row, p.budget, p.size, p.prediction, p.confidence) for p in pictures]
    packed["pictures"] = np.array(plain, dtype=np.float64).reshape(len(plain), 5)
    for number, picture in enumerate(pictures):
        packed[f"image{number}"] = picture.adversarial.numpy()
        flow = picture.flow
        packed[f"flow{number}"] = np.empty(0) if flow is None else flow.numpy()
    return packed


def _unpack(stored: Mapping[str, Any]) -> tuple[list[Outcome], list[Candidate]]:
    columns = [stored[name].tolist() for name in Outcome._fields]
    outcomes = [
        Outcome(row, smallest, by or None, *spent)
        for row, smallest, by, *spent in zip(*columns, strict=True)
    ]
    pictures = [
        Candidate(
            int(row),
            budget,
            size,
            int(prediction),
            confidence,
            from_numpy(stored[f"image{number}"]),
            from_numpy(stored[f"flow{number}"]) if stored[f"flow{number}"].size else None,
        )
        for number, (row, budget, size, prediction, confidence) in enumerate(
            stored["pictures"].tolist()
        )
    ]
    return outcomes, pictures
