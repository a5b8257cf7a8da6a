"""Robust accuracy against training cost, for every objective of the suite, on handwritten digits.

    python benchmarks/training_cost.py --seeds 0 1 2

Trains what is not trained yet (main.py), attacks it (evaluate.py), measures what a step of each
objective costs, and writes its section of docs/results.md and its figure. Trainings may share a
busy machine: their own time plays no part. All steps are taken in one process, each objective's
after plain ones (A B A C A D ...); processor time of one thread, the median over the rounds.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import textwrap
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pages import commit, put_section
from pgd import machine
from training_cost_figure import Panel, Row, Spread, figure_of
from training_cost_steps import (
    DATA,
    LINF,
    PIXELS,
    PLAIN,
    VARIANTS,
    StepCost,
    measure,
    objective_of,
    steps_of,
    values_of,
)

from robustbench_gpm.checkpoint import CARD, LAST, fingerprint, load, read_card
from robustbench_gpm.core import UserError, pick_device
from robustbench_gpm.fields import plain
from robustbench_gpm.files import safe_name, write_text
from robustbench_gpm.records import RECORDS, Records, read
from robustbench_gpm.report.saving import save
from robustbench_gpm.summary import robust_accuracy
from robustbench_gpm.train_command import INCIDENTAL

ROOT = Path(__file__).resolve().parent.parent
IMAGE = "training_cost.png"
ATTACKS: dict[str, Any] = {
    "attack": ["apgd-t", "flow-vertex"],
    "budgets": [f"apgd-t={LINF}", f"flow-vertex={PIXELS}"],
    "set": ["apgd-t.steps=20"],
}
PANELS = (
    Panel("intensity", f"intensity: apgd-t, linf {LINF}"),
    Panel("location", f"location: flow-vertex, {PIXELS} px"),
)


def step_costs(names: Sequence[str], given: argparse.Namespace) -> tuple[dict[str, StepCost], str]:
    """Of a step and on which machine: measured now, or before for the same flags and rounds."""
    path = given.results_dir / "steps.json"
    asked = {"rounds": given.rounds, "flags": {name: VARIANTS[name].flags for name in names}}
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if {key: kept.get(key) for key in asked} != asked:
        costs = {name: dataclasses.asdict(c) for name, c in measure(names, given.rounds).items()}
        kept = {**asked, "machine": machine(pick_device("cpu")), "costs": costs}
        write_text(path, json.dumps(kept, indent=1) + "\n")
    return {name: StepCost(**kept["costs"][name]) for name in names}, kept["machine"]


def run(*words: object) -> None:
    """Run one of the product's commands on one thread. Raises UserError if it fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise UserError(f"{' '.join(map(str, words))} failed: {last}")


def train(name: str, seed: int, given: argparse.Namespace) -> Path:
    """The folder of the finished checkpoint, trained if need be.

    Raises UserError if what is there was trained by other flags.
    """
    folder: Path = given.checkpoints_dir / f"seed{seed}" / safe_name(name)
    epochs = [] if given.epochs is None else ["--epochs", str(given.epochs)]
    flags = [*VARIANTS[name].flags.split(), *epochs, "--seed", str(seed)]
    resume: list[str] = []
    if (folder / CARD).exists():
        card, asked = read_card(folder), plain(values_of(flags))
        if any(card.configuration.get(k) != asked[k] for k in asked.keys() - INCIDENTAL):
            raise UserError(f"{folder} was trained by other flags: remove it to train anew")
        if card.finished:
            return folder
        resume = ["--resume"]
    run("main.py", *flags, "--out", folder, *resume)
    return folder


def evaluate(name: str, seed: int, given: argparse.Namespace) -> Records:
    """The last weights of a training under both attacks; what was measured before is kept."""
    weights = train(name, seed, given) / LAST
    out: Path = given.results_dir / f"seed{seed}" / safe_name(name)
    asked = {**ATTACKS, "limit": given.limit}
    if (out / RECORDS).exists():
        before = read(out)
        configuration: Any = before.provenance["configuration"]
        same = all(configuration[key] == value for key, value in asked.items())
        complete = len(before.attacks) == len(ATTACKS["attack"])
        hashed = fingerprint(load(weights).model)
        if same and complete and before.provenance["weights_hash"] == hashed:
            return before
    words = [word for key, value in ATTACKS.items() for word in (f"--{key}", *value)]
    limit = [] if given.limit is None else ["--limit", given.limit]
    run("evaluate.py", "--checkpoint", weights, *words, *limit, "--examples", 0, "--out", out)
    print(f"{name}, seed {seed}: done", flush=True)
    return read(out)


def row_of(name: str, over_seeds: Sequence[Records], step: StepCost, steps: float) -> Row:
    """Accuracies over the seeds, and the cost: that of a step times the number of steps."""
    times = [steps * ratio for ratio in step.ratios]
    cost = Spread(statistics.median(times), min(times), max(times))
    clean = Spread.of([100 * float(records.right.mean()) for records in over_seeds])
    intensity, location = (
        Spread.of([100 * robust_accuracy(r, r.attack(attack))[0].value for r in over_seeds])
        for attack in ATTACKS["attack"]
    )
    return Row(name, VARIANTS[name].family, cost, clean, intensity, location)


def table(rows: Sequence[Row], steps: Mapping[str, StepCost]) -> list[str]:
    """A line an objective, in the order of the variants."""
    lines = [
        f"| objective | clean | `apgd-t` {LINF} | `flow-vertex` {PIXELS} px | cost | passes | "
        "flags of main.py |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        accuracies = " | ".join(spread(a, 1) for a in (row.clean, row.intensity, row.location))
        cost = "1" if row.name == PLAIN else spread(row.cost, 2)
        passes = f"{steps[row.name].forwards:.3g} + {steps[row.name].backwards:.3g}"
        flags = f"`{VARIANTS[row.name].flags}`" if VARIANTS[row.name].flags else ""
        lines.append(f"| {row.name} | {accuracies} | {cost} | {passes} | {flags} |")
    return lines


def spread(value: Spread, digits: int) -> str:
    """53.1 (50.0-56.2)."""
    middle, least, largest = (f"{number:.{digits}f}" for number in value)
    return f"{middle} ({least}-{largest})"


def doubts(measured: Mapping[str, Sequence[Records]]) -> list[str]:
    """A line for each objective whose numbers the evaluation's own checks doubt."""
    told = []
    for name, over_seeds in measured.items():
        flags = [f for records in over_seeds for f in records.flags if f.get("kind") != "note"]
        names = sorted({str(flag["name"]).replace("_", " ") for flag in flags})
        seeds = sum(any(f.get("kind") != "note" for f in r.flags) for r in over_seeds)
        if names:
            told.append(f"- `{name}`, {seeds} of {len(over_seeds)} seeds: {', '.join(names)}")
    return ["Flags that say a number may be too high:", "", *told, ""] if told else []


def section(
    rows: Sequence[Row],
    steps: Mapping[str, StepCost],
    notes: Sequence[str],
    asked: str,
    facts: Mapping[str, object],
) -> str:
    """The section of docs/results.md: `asked` is the command.

    `facts`: the machine that timed, the seeds, epochs and images.
    """
    text = f"""
        Every objective of the suite on the handwritten digits, by the data set's recipe and, beside
        it, the flags in the table: budgets of {LINF} or {PIXELS} pixels, and weights chosen by hand
        in a short sweep, of one seed and on the same test images (four to eight times the weight of
        igr, gpm, fgr 5000 and sam did worse, down to chance). So this says what each can do here,
        not which is best elsewhere. Trained for {facts["epochs"]} epochs (the recipe has
        {DATA.recipe.epochs}); the last weights are attacked, on {facts["images"]} test images.
        Accuracy in per cent, mean over the seeds (least-largest). Cost is training time in
        multiples of plain SGD: the processor time of a step, median over the rounds (least-largest)
        in one process, each after plain ones, times the number of steps. Free training divides its
        epochs by its replays, so that it makes as many steps. Passes of a batch in a step: forward,
        and gradients that came back to the logits, of which those through a gradient cost more.
        `fd`: penalties by finite differences; `lazy`: at every fourth step."""
    return "\n".join(
        [
            "## What robustness costs in training",
            "",
            *textwrap.wrap(" ".join(text.split()), 100, break_on_hyphens=False),
            "",
            "```",
            asked,
            "```",
            "",
            f"Machine: {facts['machine']}. Commit {commit()}. Seeds: {facts['seeds']}.",
            "",
            f"![Robust accuracy against training cost](images/{IMAGE})",
            "",
            *table(rows, steps),
            "",
            *notes,
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, attack, time and write up; 2 after a mistake."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, help="by default the recipe's")
    parser.add_argument("--limit", type=int, help="attack this many test images only")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--rounds", type=int, default=15, help="in which steps are timed")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    parser.add_argument("--checkpoints_dir", type=Path, default=ROOT / "checkpoints/training_cost")
    parser.add_argument("--results_dir", type=Path, default=ROOT / "results/training_cost")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    given = parser.parse_args(arguments)
    try:
        write_up(given)
    except UserError as error:
        print(f"training_cost.py: {error}", file=sys.stderr)
        return 2
    return 0


def write_up(given: argparse.Namespace) -> None:
    """Everything."""
    asked = [(name, seed) for seed in given.seeds for name in given.variants]
    pool = ThreadPoolExecutor(given.jobs)
    try:
        done = dict(
            zip(asked, pool.map(lambda each: evaluate(each[0], each[1], given), asked), strict=True)
        )
    finally:
        pool.shutdown(cancel_futures=True)  # after a failure, only what has begun is ended
    measured = {name: [done[name, seed] for seed in given.seeds] for name in given.variants}
    steps, where = step_costs(given.variants, given)
    epochs = given.epochs or DATA.recipe.epochs
    rows = []
    for name, over_seeds in measured.items():
        replays = objective_of(values_of(VARIANTS[name].flags.split()), 1)[1]
        rows.append(row_of(name, over_seeds, steps[name], steps_of(epochs, replays)))
    save(figure_of(rows, PANELS), given.docs / "images" / IMAGE)
    words = f"python benchmarks/training_cost.py --seeds {' '.join(map(str, given.seeds))}"
    for name in ("epochs", "limit"):
        value = getattr(given, name)
        words += "" if value is None else f" --{name} {value}"
    facts = {
        "machine": where,
        "seeds": ", ".join(map(str, given.seeds)),
        "epochs": epochs,
        "images": len(next(iter(done.values())).index),
    }
    text = section(rows, steps, doubts(measured), words, facts)
    put_section(given.docs / "results.md", "training_cost.py", text, title="Results")
    print(text)


if __name__ == "__main__":
    sys.exit(main())
