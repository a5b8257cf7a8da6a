"""Studies of training: the same recipe with several objectives, attacked alike, and written up.

A study trains what is not trained yet (main.py), evaluates (evaluate.py), and writes its section of
docs/results.md and its figures.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pages import commit, put_section
from pgd import machine

from robustbench_gpm.checkpoint import CARD, Card, read_card
from robustbench_gpm.core import pick_device
from robustbench_gpm.records import Records, read
from robustbench_gpm.summary import proportion, robust_accuracy

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Study:
    """What is compared.

    recipe: a file, or None for the embedded digits; variants: name in the legend -> flags of
    main.py beside the recipe's; attacks and budgets: evaluate.py's; shown: the variant whose
    pictures are copied to docs/images.
    """

    name: str
    heading: str
    text: str
    recipe: str | None
    variants: Mapping[str, Sequence[str]]
    attacks: Sequence[str]
    budgets: Sequence[str]
    shown: str
    pictures: Sequence[str] = ("examples.png",)


def run(*words: object) -> None:
    """Run one of the product's commands."""
    subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, check=True)


def folder(given: argparse.Namespace, variant: str, seed: int) -> Path:
    """Where a model's checkpoint lies; its name is what the figure's legend says."""
    base: Path = given.checkpoints_dir / f"seed{seed}" / variant
    return base


def train(study: Study, given: argparse.Namespace, variant: str, seed: int) -> None:
    """Train unless a finished checkpoint is there."""
    out = folder(given, variant, seed)
    if (out / CARD).exists() and read_card(out).finished:
        return
    flags = [*_source(study, given), "--seed", seed, "--out", out]
    resume = ["--resume"] if (out / CARD).exists() else []
    run("main.py", *_recipe(study), *study.variants[variant], *flags, *resume)


def _recipe(study: Study) -> list[str]:
    return ["--config", study.recipe] if study.recipe else []


def _source(study: Study, given: argparse.Namespace) -> list[object]:
    """Where the data lies, if it isn't embedded."""
    return ["--data_path", given.data_path] if study.recipe else []


def evaluate(study: Study, given: argparse.Namespace, seed: int) -> dict[str, Records]:
    """Attack all models of a seed; their records by name."""
    out = ROOT / "results" / f"{study.name}_seed{seed}"
    models = [folder(given, variant, seed) for variant in study.variants]
    if not (out / "curve.png").exists():
        run(
            *("evaluate.py", *_source(study, given), "--checkpoint", *models),
            *("--attack", *study.attacks, "--budgets", *study.budgets),
            *("--limit", given.limit, "--examples", 2, "--out", out),
        )
    return {name: read(out / name) for name in study.variants}


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


def over_seeds(study: Study, measured: dict[int, dict[str, Records]]) -> list[str]:
    """A table of means over seeds, each with the least and the largest."""
    columns = {
        name: np.array([shares(records[name]) for records in measured.values()])
        for name in study.variants
    }
    first = next(iter(measured.values()))[next(iter(study.variants))]
    places = [("none", "")]
    places += [(f"`{attack.name}`", label) for attack in first.attacks for label in attack.labels]
    lines = ["### Over seeds", "", "Mean, with the least and the largest.", ""]
    lines += [f"| attack | budget | {' | '.join(columns)} |", "|---|---|" + "---|" * len(columns)]
    for row, (attack, label) in enumerate(places):
        cells = [
            percent(float(c[:, row].mean()), float(c[:, row].min()), float(c[:, row].max()))
            for c in columns.values()
        ]
        lines.append(f"| {attack} | {label} | {' | '.join(cells)} |")
    return [*lines, ""]


def shares(records: Records) -> list[float]:
    """Clean accuracy, then the robust ones of every attack and budget."""
    robust = [point.value for a in records.attacks for point in robust_accuracy(records, a)]
    return [proportion(records.right).value, *robust]


def training_line(card: Card) -> str:
    """What a training cost, and where it ended."""
    seconds = sum(epoch.get("seconds", 0) for epoch in card.history)
    took = f" in {seconds / 60:.0f} minutes" if seconds else ""
    best = card.history[card.best_epoch - 1]["validation_accuracy"]
    return f"{len(card.history)} epochs{took}, validation accuracy {100 * best:.1f} %"


def section(
    study: Study, given: argparse.Namespace, measured: dict[int, dict[str, Records]]
) -> str:
    """The study's section of docs/results.md."""
    seeds = " ".join(str(seed) for seed in measured)
    where = "--data_path DIR " if study.recipe else ""
    alone = "; one seed, so the spread over seeds is not known" if len(measured) == 1 else ""
    lines = [
        f"## {study.heading}",
        "",
        *textwrap.wrap(study.text, 100),
        *textwrap.wrap(given.note, 100),
        f"Accuracy in per cent with Wilson's 95% interval, on the first {given.limit} images of a",
        "fixed shuffle of the test split. A sample counts as robust at a budget only if no smaller",
        "one fooled it.",
        "",
        "```",
        f"python benchmarks/{study.name}.py {where}--limit {given.limit} --seeds {seeds}",
        "```",
        "",
        f"trains by `{' '.join(['python main.py', *_recipe(study), where]).strip()}`, evaluates,",
        "and writes this section. Beside the recipe's flags:",
        "",
        *(f"- `{name}`: `{' '.join(flags)}`" for name, flags in study.variants.items() if flags),
        "",
        f"Machine: {machine(pick_device('auto'))}. Commit {commit()}. "
        f"Seeds: {', '.join(map(str, measured))}{alone}.",
        "",
        *(over_seeds(study, measured) if len(measured) > 1 else ()),
    ]
    for seed, records in measured.items():
        lines += [f"### Seed {seed}", "", *table(records), ""]
        for name in study.variants:
            lines.append(f"- `{name}`: {training_line(read_card(folder(given, name, seed)))}")
        lines += ["", f"![Accuracy versus budget, seed {seed}](images/{study.name}_seed{seed}.png)"]
        for picture in study.pictures:
            shown = image_name(study, seed, picture)
            lines += ["", f"![{study.shown} under attack, seed {seed}](images/{shown})"]
        lines.append("")
    return "\n".join(lines)


def image_name(study: Study, seed: int, picture: str) -> str:
    """What a copied picture is called in docs/images."""
    path = Path(picture)
    return f"{study.name}_{path.stem}_seed{seed}{path.suffix}"


def main(study: Study) -> None:
    """Everything."""
    parser = argparse.ArgumentParser(description=study.heading)
    if study.recipe:
        parser.add_argument("--data_path", type=Path, required=True, help="holds cifar10")
    parser.add_argument("--checkpoints_dir", type=Path, default=ROOT / "checkpoints" / study.name)
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--note", default="", help="a sentence for the page, on the data say")
    given = parser.parse_args()
    measured = {}
    images = ROOT / "docs/images"
    images.mkdir(exist_ok=True)
    for seed in given.seeds:
        for variant in study.variants:
            train(study, given, variant, seed)
        measured[seed] = evaluate(study, given, seed)
        out = ROOT / "results" / f"{study.name}_seed{seed}"
        shutil.copy(out / "curve.png", images / f"{study.name}_seed{seed}.png")
        for picture in study.pictures:
            shutil.copy(out / study.shown / picture, images / image_name(study, seed, picture))
    text = section(study, given, measured)
    put_section(ROOT / "docs/results.md", f"{study.name}.py", text, title="Results")
    print(json.dumps({seed: list(records) for seed, records in measured.items()}))
