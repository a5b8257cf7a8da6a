"""`evaluate.py merge`, `robustbench-gpm merge`: the records of all shards, put together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from . import records
from .core import UserError
from .evaluate_command import report
from .files import try_folder
from .flags import Parser, parse
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
    whole = merged([records.read(folder) for folder in folders])
    records.write(whole, out)
    report(whole, out)
    print(f"results: {out}")
    print(f"figure: {out / 'curve.png'}")
