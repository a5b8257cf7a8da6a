"""`evaluate.py merge`, `robustbench-gpm merge`: the records of all shards, put together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from . import graded, records
from .core import UserError
from .evaluate_command import report
from .files import try_folder
from .flags import Parser, parse
from .graded import GradedRecords
from .graded.command import report_graded
from .records import Records
from .shards import merged


def run(arguments: Sequence[str], prog: str) -> None:
    """Merge the records in the folders that `arguments` name, and print where they are."""
    parser = Parser(prog=prog, description="Put the records of all shards together.")
    parser.add_argument("shards", nargs="+", help="folders that evaluate.py --shard wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder for the whole")
    values = parse(parser, arguments)
    folders = [Path(folder) for folder in values["shards"]]
    out = try_folder(Path(values["out"]), "--out")
    if out.resolve() in [folder.resolve() for folder in folders]:
        raise UserError(f"--out {out} is one of the shards: choose another folder")
    _merge(folders, out)
    print(f"results: {out}")
    print(f"figure: {out / 'curve.png'}")


def _merge(folders: Sequence[Path], out: Path) -> None:
    """Write the whole into `out`, and report it, by the kind of records there are."""
    classified, scored = list[Records](), list[GradedRecords]()
    for folder in folders:
        if graded.holds_graded(folder):
            scored.append(graded.read(folder))
        else:
            classified.append(records.read(folder))
    if classified and scored:
        raise UserError("these records are of different tasks: merge the shards of one evaluation")
    if scored:
        scores = graded.merged(scored)
        graded.write(scores, out)
        report_graded(scores, out)
    else:
        whole = merged(classified)
        records.write(whole, out)
        report(whole, out)
