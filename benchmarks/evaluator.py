"""The evaluator against torchattacks: verdicts, a curve and PGD; passes, seconds and accuracy.

    python benchmarks/evaluator.py --checkpoint DIR --budgets 8/255 --data_path DIR --render

verdict: one budget, the attack here beside the standard AutoAttack out of torchattacks' parts;
curve: ten budgets, `pgd` here beside torchattacks' PGD at each; pgd: the same at one budget.
The raw numbers of each model and part are kept in --out, a JSON file a part, so a long measurement
can be made in pieces. --render writes docs/benchmarks.md's section and figure from what is there.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from duel import Contender, Here, duel, lowered
from evaluator_page import render
from measured import read_parts, write_part
from pgd import machine
from theirs import PGD_STEPS, There, autoattack_members, packaged_members, pgd_members

from robustbench_gpm.attacks import ATTACKS
from robustbench_gpm.checkpoint import now
from robustbench_gpm.config import EvaluateConfig
from robustbench_gpm.core import UserError, pick_device
from robustbench_gpm.evaluator import Subject
from robustbench_gpm.subjects import subjects_of

ROOT = Path(__file__).resolve().parent.parent
CURVE = tuple(budget / 255 for budget in torch.linspace(0.1, 8, 10, dtype=torch.float64).tolist())
REFERENCE = "torchattacks"


def contenders(
    part: str, subject: Subject, budgets: Sequence[float], given: argparse.Namespace
) -> dict[str, Callable[[], Contender]]:
    """Who takes part, by name, and how each is made ready."""
    device, chunk = pick_device(given.device), _chunk(given, subject)
    limits = {"steps": given.steps, "queries": given.queries}
    names = ["pgd"]
    there = {REFERENCE: pgd_members(min(PGD_STEPS, given.steps))}
    if part == "verdict":
        names = [given.attack, *(["autoattack"] if given.with_autoattack else [])]
        classes = len(subject.split.classes)
        there = {REFERENCE: autoattack_members(classes, given.steps, given.queries)}
        if given.with_packaged:
            there["pyautoattack"] = packaged_members()
    made: dict[str, Callable[[], Contender]] = {}
    for name in names:
        attack = lowered(ATTACKS[name], limits)
        made[f"here, {name}"] = partial(Here, subject, device, attack, name, budgets, chunk)
    for name, members in there.items():
        made[name] = partial(There, subject, device, members, budgets, chunk)
    return made


def measure(
    part: str, subject: Subject, title: str, budgets: Sequence[float], given: argparse.Namespace
) -> dict[str, Any]:
    """One entry of a part's JSON file."""
    count, chunk = len(subject.split), _chunk(given, subject)
    makers = contenders(part, subject, budgets, given)
    results = duel(makers, torch.arange(count), chunk, pick_device(given.device))
    return {
        "model": subject.name,
        "title": title,
        "budgets": list(budgets),
        "images": count,
        "chunk": chunk,
        "reference": REFERENCE,
        "contenders": results,
        "machine": machine(pick_device(given.device)),
        "commit": _commit(),
        "command": _command(given),
        "torchattacks": version("torchattacks"),
        "weights": subject.provenance["weights_hash"],
        "data": subject.provenance["data_hash"],
        "limits": {"steps": given.steps, "queries": given.queries},
        "when": now(),
    }


def _chunk(given: argparse.Namespace, subject: Subject) -> int:
    chunks: int = given.chunks
    return max(1, -(-len(subject.split) // chunks))


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def _command(given: argparse.Namespace) -> str:
    """What was typed but for where the files lie."""
    words = ["python benchmarks/evaluator.py", "--parts", *given.parts, "--images", given.images]
    if given.checkpoint:
        words += ["--checkpoint", *(_place(Path(path)) for path in given.checkpoint)]
    if given.onnx is not None:
        words += ["--onnx", _place(given.onnx), "--mean", *given.mean, "--std", *given.std]
    words += ["--budgets", *given.budgets, "--attack", given.attack, "--chunks", given.chunks]
    for flag in ("with_autoattack", "with_packaged"):
        words += [f"--{flag}"] if getattr(given, flag) else []
    if given.names:
        words += ["--names", *(shlex.quote(name) for name in given.names)]
    words += ["--data_name", given.data_name] if given.data_name else []
    words += ["--data_path DIR"] if given.data_path else []
    words += ["--device", given.device] + (["--threads", given.threads] if given.threads else [])
    return " ".join(str(word) for word in words)


def _place(path: Path) -> str:
    """Where a file lies in the repository; its name alone if it lies elsewhere."""
    path = path.resolve()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name


def _subjects(given: argparse.Namespace) -> list[Subject]:
    """The checkpoints in their order, then the ONNX network."""
    data: dict[str, Any] = {
        "data_name": given.data_name,
        "data_path": given.data_path,
        "cache_dir": given.data_path or Path("data"),
        "limit": given.images,
    }
    subjects = []
    if given.checkpoint:
        subjects += subjects_of(EvaluateConfig(checkpoint=tuple(given.checkpoint), **data), {})
    if given.onnx is not None:
        norm: dict[str, Any] = {"mean": tuple(given.mean), "std": tuple(given.std)}
        subjects += subjects_of(EvaluateConfig(model=f"onnx:{given.onnx}", **norm, **data), {})
    return subjects


def _budgets(texts: Sequence[str], subjects: Sequence[Subject]) -> list[list[float]]:
    """Every model's budgets, `2/255,8/255` say; one for all if only one is given."""
    if len(texts) not in (1, len(subjects)):
        raise UserError(f"--budgets: give one, or one for each of the {len(subjects)} models")
    try:
        found = [[float(Fraction(word)) for word in text.split(",")] for text in texts]
    except (ValueError, ZeroDivisionError):
        raise UserError(f"--budgets {' '.join(texts)}: write 8/255, or 2/255,8/255") from None
    return found * (len(subjects) // len(found))


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add = parser.add_argument
    add("--checkpoint", nargs="+", default=[], help="folders main.py wrote")
    add("--onnx", type=Path, help="a network as ONNX; needs --data_name")
    add("--mean", type=float, nargs="+", default=[], help="what the ONNX network's inputs lack")
    add("--std", type=float, nargs="+", default=[], help="the same: standard deviations")
    add("--names", nargs="+", help="what the page calls the models; their own names otherwise")
    add("--data_path", type=Path, help="where the data set lies")
    add("--data_name", help="by default the one the checkpoint was trained on")
    add("--images", type=int, default=1000, help="the first of one fixed shuffle of the test split")
    add("--parts", nargs="+", choices=["verdict", "curve", "pgd"], default=["verdict"])
    add("--budgets", nargs="+", default=["8/255"], help="linf, a model: 2/255,8/255 is two")
    add("--attack", default="fast", help="the verdict's attack, by its name in the table")
    add("--with_autoattack", action="store_true", help="this suite's autoattack too, which is dear")
    add("--with_packaged", action="store_true", help="pyautoattack too, where it is installed")
    add("--chunks", type=int, default=4, help="the contenders take turns on so many chunks")
    add("--threads", type=int, help="of torch")
    add("--device", default="cpu")
    add("--out", type=Path, default=ROOT / "benchmarks" / "results", help="for the raw numbers")
    add("--render", action="store_true", help="write the page and the figure from --out")
    add("--docs", type=Path, default=ROOT / "docs", help="where they are written")
    add("--steps", type=int, default=100, help=argparse.SUPPRESS)  # less is for trying it out
    add("--queries", type=int, default=5000, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def _measure(given: argparse.Namespace) -> None:
    subjects = _subjects(given)
    if not subjects:
        return
    ATTACKS[given.attack]  # before the first part is measured
    if given.chunks < 1:
        raise UserError("--chunks must be at least 1")
    names = given.names or [subject.name for subject in subjects]
    if len(names) != len(subjects):
        raise UserError(f"--names: give one for each of the {len(subjects)} models")
    given.out.mkdir(parents=True, exist_ok=True)
    for subject, title, budgets in zip(
        subjects, names, _budgets(given.budgets, subjects), strict=True
    ):
        for part in given.parts:
            for chosen in [list(CURVE)] if part == "curve" else [[one] for one in budgets]:
                entry = measure(part, subject, title, chosen, given)
                write_part(given.out, part, entry)
                print(json.dumps({part: title, "budgets": chosen, **_told(entry)}), flush=True)


def _told(entry: dict[str, Any]) -> dict[str, Any]:
    return {name: round(sum(one["seconds"]), 2) for name, one in entry["contenders"].items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is named, write the page if asked; 2 after a mistake in the arguments."""
    given = _arguments(arguments)
    if given.threads:
        torch.set_num_threads(given.threads)
    try:
        _measure(given)
        if given.render:
            parts = read_parts(given.out)
            if not any(parts.values()):
                raise UserError(f"there is nothing measured in {given.out} to write up")
            print(f"page: {render(parts, given.docs)}")
    except UserError as error:
        print(f"evaluator.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
