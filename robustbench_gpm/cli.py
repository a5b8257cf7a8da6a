"""The doors: `robustbench-gpm train`, `evaluate` and `merge`; main.py and evaluate.py."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from .core import UserError

Command = Callable[[Sequence[str], str], None]

USAGE = """usage: robustbench-gpm {train,evaluate,merge} [flags]

  train      train a model with gradient penalties      (robustbench-gpm train --help)
  evaluate   attack a model over a range of budgets     (robustbench-gpm evaluate --help)
  merge      put the records of shards together         (robustbench-gpm merge --help)"""


def train(arguments: Sequence[str] | None = None, prog: str = "main.py") -> int:
    """Train as main.py does; the process's exit code."""
    from .train_command import run  # noqa: PLC0415  (torch is slow to import; --help need not wait)

    return _guarded(run, sys.argv[1:] if arguments is None else arguments, prog)


def evaluate(arguments: Sequence[str] | None = None, prog: str = "evaluate.py") -> int:
    """Evaluate as evaluate.py does; the process's exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    if given and given[0] == "merge":
        return merge(given[1:], f"{prog} merge")
    from .evaluate_command import run  # noqa: PLC0415

    return _guarded(run, given, prog)


def merge(arguments: Sequence[str], prog: str) -> int:
    """Put the records of shards together; the process's exit code."""
    from .merge_command import run  # noqa: PLC0415

    return _guarded(run, arguments, prog)


def main(arguments: Sequence[str] | None = None) -> int:
    """`robustbench-gpm`; the process's exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    commands = {"train": train, "evaluate": evaluate, "merge": merge}
    if given and given[0] in commands:
        return commands[given[0]](given[1:], f"robustbench-gpm {given[0]}")
    if given and given[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    what = f"unknown command '{given[0]}'" if given else "a command is missing"
    print(f"robustbench-gpm: {what}: use train, evaluate or merge", file=sys.stderr)
    return 2


def _guarded(command: Command, arguments: Sequence[str], prog: str) -> int:
    try:
        command(arguments, prog)
    except UserError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\n{prog}: interrupted; what was written so far is kept", file=sys.stderr)
        return 130
    return 0
