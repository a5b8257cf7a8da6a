"""The flow-gradient experiment: train VGG-11 without and with the penalty, attack, write it up.

    python benchmarks/flow_gradient.py --data_path DIR --seeds 0

Trains what is not trained yet (main.py with recipes/cifar10_vgg11_short.yaml), evaluates, and
writes docs/results.md and its figures. DIR holds cifar10 in class folders or in torchvision's
layout.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

from pgd import machine

from robustbench_gpm.checkpoint import CARD, Card, read_card
from robustbench_gpm.core import pick_device
from robustbench_gpm.records import Records, read
from robustbench_gpm.summary import proportion, robust_accuracy

ROOT = Path(__file__).resolve().parent.parent
RECIPE = "recipes/cifar10_vgg11_short.yaml"
BUDGETS = [
    "fgr=0.05,0.1,0.155,0.2,0.3",
    "stadv=0.05,0.1,0.155,0.2,0.3",
    "pgd=0.5/255,1/255,2/255,4/255",
]
NAMES = {0: "baseline", 300: "flow_gradient"}


def run(*words: object) -> str:
    """Run one of the product's commands, and return it as a user would type it."""
    command = [str(word) for word in words]
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True)
    return " ".join(["python", *command])


def folder(given: argparse.Namespace, lamb: int, seed: int) -> Path:
    """Where a model's checkpoint lies; its name is what the figure's legend says."""
    base: Path = given.checkpoints_dir / f"seed{seed}" / NAMES[lamb]
    return base


def train(given: argparse.Namespace, lamb: int, seed: int) -> None:
    """Train unless a finished checkpoint is there."""
    out = folder(given, lamb, seed)
    if (out / CARD).exists() and read_card(out).finished:
        return
    flags = ["--data_path", given.data_path, "--fgr_lamb", lamb, "--seed", seed, "--out", out]
    resume = ["--resume"] if (out / CARD).exists() else []
    run("main.py", "--config", RECIPE, *flags, *resume)


def evaluate(given: argparse.Namespace, seed: int) -> dict[str, Records]:
    """Attack both models of a seed; their records by name."""
    out = ROOT / "results" / f"flow_gradient_seed{seed}"
    both = [folder(given, lamb, seed) for lamb in NAMES]
    if not (out / "curve.png").exists():
        run(
            *("evaluate.py", "--data_path", given.data_path, "--checkpoint", *both),
            *("--attack", "fgr", "stadv", "pgd", "--budgets", *BUDGETS),
            *("--limit", given.limit, "--examples", 2, "--out", out),
        )
    return {name: read(out / name) for name in NAMES.values()}


def percent(share: float, low: float, high: float) -> str:
    """A share with its interval: 53.1 (50.0-56.2)."""
    return f"{100 * share:.1f} ({100 * low:.1f}-{100 * high:.1f})"


def table(measured: dict[str, Records]) -> list[str]:
    """One line an attack and budget, one column a model."""
    first = next(iter(measured.values()))
    lines = [f"| attack | budget | {' | '.join(measured)} |", "|---|---|" + "---|" * len(measured)]
    clean = [percent(*proportion(records.right)) for records in measured.values()]
    lines.append(f"| none | | {' | '.join(clean)} |")
    for place, attack in enumerate(first.attacks):
        rows = [robust_accuracy(records, records.attacks[place]) for records in measured.values()]
        for label, shares in zip(attack.labels, zip(*rows, strict=True), strict=True):
            cells = " | ".join(percent(*share) for share in shares)
            lines.append(f"| `{attack.name}` | {label} | {cells} |")
    return lines


def training_line(card: Card) -> str:
    """What a training cost, and where it ended."""
    seconds = sum(epoch.get("seconds", 0) for epoch in card.history)
    took = f" in {seconds / 60:.0f} minutes" if seconds else ""
    best = card.history[card.best_epoch - 1]["validation_accuracy"]
    return f"{len(card.history)} epochs{took}, validation accuracy {100 * best:.1f} %"


def report(given: argparse.Namespace, measured: dict[int, dict[str, Records]]) -> str:
    """docs/results.md."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    seeds = ", ".join(str(seed) for seed in measured)
    lines = [
        "# Results",
        "",
        "## The flow gradient on CIFAR-10",
        "",
        "VGG-11 with batch norm, trained without (`baseline`) and with the flow-gradient penalty",
        "(`flow_gradient`, `--fgr_lamb 300`), both under the same short recipe.",
        *textwrap.wrap(given.note, 100),
        f"Accuracy in per cent with Wilson's 95% interval, on the first {given.limit} images of a",
        "fixed shuffle of the test split. A sample counts as robust at a budget only if no smaller",
        "one fooled it. `fgr` is the paper's attack, and 0.155 pixels its budget in the paper",
        "(0.01 in [-1,1] coordinates).",
        "",
        "```",
        f"python benchmarks/flow_gradient.py --data_path DIR --limit {given.limit} --seeds "
        + " ".join(str(seed) for seed in measured),
        "```",
        "",
        "which trains by `python main.py --config recipes/cifar10_vgg11_short.yaml --data_path DIR",
        "--fgr_lamb 0` (and `300`), evaluates both, and writes this page.",
        "",
        f"Machine: {machine(pick_device('auto'))}. Commit {commit}. Seeds: {seeds}"
        + ("; one seed, so the spread over seeds is not known." if len(measured) == 1 else "."),
        "",
    ]
    for seed, records in measured.items():
        lines += [f"### Seed {seed}", "", *table(records), ""]
        for lamb, name in NAMES.items():
            lines.append(f"- `{name}`: {training_line(read_card(folder(given, lamb, seed)))}")
        curve, strip = f"images/flow_gradient_seed{seed}.png", f"images/examples_seed{seed}.png"
        lines += ["", f"![Accuracy versus budget, seed {seed}]({curve})", ""]
        lines += [f"![Adversarial examples of the flow-gradient model]({strip})", ""]
    return "\n".join(lines)


def main() -> None:
    """Everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_path", type=Path, required=True)
    parser.add_argument("--checkpoints_dir", type=Path, default=ROOT / "checkpoints/flow_gradient")
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--note", default="", help="a sentence for the page, on the data say")
    given = parser.parse_args()
    measured = {}
    for seed in given.seeds:
        for lamb in NAMES:
            train(given, lamb, seed)
        measured[seed] = evaluate(given, seed)
        images = ROOT / "docs/images"
        images.mkdir(exist_ok=True)
        out = ROOT / "results" / f"flow_gradient_seed{seed}"
        shutil.copy(out / "curve.png", images / f"flow_gradient_seed{seed}.png")
        shutil.copy(out / "flow_gradient/examples.png", images / f"examples_seed{seed}.png")
    (ROOT / "docs/results.md").write_text(report(given, measured), encoding="utf-8")
    print(json.dumps({seed: list(records) for seed, records in measured.items()}))


if __name__ == "__main__":
    main()
