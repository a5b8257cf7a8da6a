"""Shares of one evaluation, and their records put together again.

Samples are attacked in batches; shard i of n does every n-th batch, from the i-th on. A batch holds
the same samples whoever does it, and so shards measure what one process would have.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .core import UserError
from .records import HASHES, AttackColumns, Records
from .showcase import shown


@dataclass(frozen=True)
class Shard:
    """Part `part` of `parts`, counted from 1."""

    part: int = 1
    parts: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """`2/4` is the second of four. Raises UserError for anything else."""
        part, _, parts = text.partition("/")
        if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
            raise UserError(f"--shard {text} is not of the form 2/4 (the second of four)")
        return cls(int(part), int(parts))

    def __str__(self) -> str:
        return f"{self.part}/{self.parts}"

    def batches(self, total: int, batch_size: int) -> list[tuple[int, Tensor]]:
        """Number and rows of each batch, of `total` samples, that falls to this shard."""
        every = list(enumerate(torch.split(torch.arange(total), batch_size)))
        mine = every[self.part - 1 :: self.parts]
        if not mine:
            raise UserError(
                f"--shard {self}: {total} images make {len(every)} batches of {batch_size}, too "
                "few to share among so many: lower --batch_size"
            )
        return mine

    def told(self, total: int, batch_size: int) -> dict[str, object]:
        """What the provenance of its records says, by which they can be merged."""
        share = {"part": self.part, "parts": self.parts}
        return {**share, "total": total, "batch_size": batch_size}


class Named(Protocol):
    """An attack's columns, of whatever kind."""

    @property
    def name(self) -> str: ...


class Part(Protocol):
    """The records of a shard, of whatever kind."""

    @property
    def model(self) -> str: ...
    @property
    def attacks(self) -> Sequence[Named]: ...
    @property
    def provenance(self) -> dict[str, object]: ...


def fitted(parts: Sequence[Part]) -> NDArray[np.int64]:
    """In which order to take the rows of these parts, one part after another, to have the whole.

    Raises UserError where a shard is missing, given twice, unfinished, or of another evaluation.
    """
    first = parts[0]
    about = [_shard_of(records) for records in parts]
    kinds = {(type(r), r.model, *(str(r.provenance[name]) for name in HASHES)) for r in parts}
    if len(kinds) > 1:
        raise UserError("these records are of different evaluations: merge the shards of one only")
    sharings = {
        tuple(int(shard[key]) for key in ("total", "batch_size", "parts")) for shard in about
    }
    if len(sharings) > 1:
        raise UserError(
            "these shards were cut differently: give all of them the same number of parts and the "
            "same --batch_size"
        )
    ((total, size, count),) = sharings
    if sorted(int(shard["part"]) for shard in about) != list(range(1, count + 1)):
        raise UserError(f"merge needs each of the {count} shards once: {len(parts)} were given")
    configuration = first.provenance.get("configuration")
    asked = configuration.get("attack") if isinstance(configuration, dict) else None
    names = [[attack.name for attack in records.attacks] for records in parts]
    if any(listed != list(dict.fromkeys(asked or names[0])) for listed in names):
        raise UserError("some of these shards are unfinished: run them again until they end")
    shares = [Shard(int(s["part"]), count).batches(total, size) for s in about]
    rows = np.concatenate([torch.cat([r for _, r in share]).numpy() for share in shares])
    return np.argsort(rows)


def of_the_whole(part: Part) -> dict[str, object]:
    """The provenance of what a shard is a part of."""
    return {**part.provenance, "shard": None}


def merged(parts: Sequence[Records]) -> Records:
    """One set of records from those of all shards, as one process would have left them.

    Raises UserError as `fitted` does.
    """
    first, order = parts[0], fitted(parts)

    def joined(arrays: Sequence[Any]) -> Any:
        return np.concatenate(arrays)[order]

    attacks = tuple(
        _joined_attack([records.attacks[i] for records in parts], order)
        for i in range(len(first.attacks))
    )
    columns = ("index", "label", "clean_prediction", "clean_confidence")
    whole = dataclasses.replace(
        first,
        **{name: joined([getattr(records, name) for records in parts]) for name in columns},
        attacks=attacks,
        examples=(),
        provenance=of_the_whole(first),
    )
    examples = {(e.attack, e.index): e for records in parts for e in records.examples}
    most = int(first.provenance.get("examples", 0) or 0)  # type: ignore[call-overload]
    kept = [
        examples[attack.name, int(whole.index[place])]
        for attack in attacks
        for place in shown(attack, most)
        if (attack.name, int(whole.index[place])) in examples
    ]
    return dataclasses.replace(whole, examples=tuple(kept))


def _shard_of(records: Part) -> dict[str, Any]:
    shard = records.provenance.get("shard")
    if not isinstance(shard, dict):
        raise UserError(f"the records of {records.model} are whole: only shards can be merged")
    return shard


def _joined_attack(parts: Sequence[AttackColumns], order: Any) -> AttackColumns:
    arrays = ("smallest_budget", "forwards", "backwards", "seconds")
    broken = [by for part in parts for by in part.broken_by]
    return dataclasses.replace(
        parts[0],
        **{name: np.concatenate([getattr(p, name) for p in parts])[order] for name in arrays},
        broken_by=[broken[i] for i in order],
    )
