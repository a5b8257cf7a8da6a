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
from dataclasses import dataclass, replace
from pathlib import Path

from outcomes import Row, how_measured, outcomes
from pages import commit, put_section
from pgd import machine
from PIL import Image

from robustbench_gpm.checkpoint import CARD, Card, read_card
from robustbench_gpm.core import pick_device
from robustbench_gpm.summary import Proportion
from robustbench_gpm.tasks import TASKS

Measured = dict[int, dict[str, list[Row]]]  # by seed and model

DIFFERENCES = ("--penalty_mode", "finite_difference")
GPM = ("--gpm_lamb", "50", *DIFFERENCES)
FLOW_GRADIENT = ("--fgr_lamb", "100", *DIFFERENCES)

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Study:
    """What is compared.

    recipe: a file, or None for the embedded digits; variants: name in the legend -> flags of
    main.py beside the recipe's; attacks, budgets and `evaluated`, further flags: evaluate.py's;
    shown: the variants whose pictures are copied to docs/images.
    """

    name: str
    heading: str
    text: str
    recipe: str | None
    variants: Mapping[str, Sequence[str]]
    attacks: Sequence[str]
    budgets: Sequence[str]
    shown: Sequence[str]
    pictures: Sequence[str] = ("examples.png",)
    task: str = "classification"
    evaluated: Sequence[str] = ()


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


def evaluate(study: Study, given: argparse.Namespace, seed: int) -> dict[str, list[Row]]:
    """Attack all models of a seed; what was measured of each, by name."""
    out = ROOT / "results" / f"{study.name}_seed{seed}"
    models = [folder(given, variant, seed) for variant in study.variants]
    if not (out / "curve.png").exists():
        run(
            *("evaluate.py", *_source(study, given), "--checkpoint", *models),
            *("--attack", *study.attacks, "--budgets", *study.budgets),
            *("--limit", given.limit, "--examples", 2, "--out", out),
            *study.evaluated,
        )
    return {name: outcomes(out / name, study.task) for name in study.variants}


def percent(share: float, low: float, high: float) -> str:
    """A share with its interval, if it has one: 53.1 (50.0-56.2)."""
    interval = f" ({100 * low:.1f}-{100 * high:.1f})" if low < high else ""
    return f"{100 * share:.1f}{interval}"


def table(columns: Mapping[str, Sequence[Row]]) -> list[str]:
    """One line an attack and budget, one column a model."""
    lines = [f"| attack | budget | {' | '.join(columns)} |", "|---|---|" + "---|" * len(columns)]
    for rows in zip(*columns.values(), strict=True):
        name = f"`{rows[0].attack}`" if rows[0].attack else "none"
        cells = " | ".join(percent(*row.left) for row in rows)
        lines.append(f"| {name} | {rows[0].label} | {cells} |")
    return lines


def over_seeds(study: Study, measured: Measured) -> list[str]:
    """A table of means over seeds, each with the least and the largest."""
    columns = {
        name: [spread(rows) for rows in zip(*(m[name] for m in measured.values()), strict=True)]
        for name in study.variants
    }
    return ["### Over seeds", "", "Mean, with the least and the largest.", "", *table(columns), ""]


def spread(rows: Sequence[Row]) -> Row:
    """The mean over seeds, with the least and the largest in the interval's place."""
    values = [row.left.value for row in rows]
    return replace(rows[0], left=Proportion(sum(values) / len(values), min(values), max(values)))


def training_line(card: Card) -> str:
    """What a training cost, and where it ended."""
    seconds = sum(epoch.get("seconds", 0) for epoch in card.history)
    took = f" in {seconds / 60:.0f} minutes" if seconds else ""
    validated = TASKS[card.task]().validated
    best = card.history[card.best_epoch - 1][validated]
    return f"{len(card.history)} epochs{took}, {validated.replace('_', ' ')} {100 * best:.1f} %"


def section(study: Study, given: argparse.Namespace, measured: Measured) -> str:
    """The study's section of docs/results.md."""
    seeds = " ".join(str(seed) for seed in measured)
    where = "--data_path DIR " if study.recipe else ""
    alone = "; one seed, so the spread over seeds is not known" if len(measured) == 1 else ""
    lines = [
        f"## {study.heading}",
        "",
        *textwrap.wrap(study.text, 100),
        *textwrap.wrap(given.note, 100),
        *textwrap.wrap(
            f"{how_measured(study.task)} Measured on the first {given.limit} of a fixed shuffle of "
            "the test split.",
            100,
        ),
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
        lines += ["", f"![Curves, seed {seed}](images/{study.name}_seed{seed}.png)"]
        for shown, picture in pictures_of(study, given, seed):
            path = image_name(study, shown, seed, picture)
            lines += ["", f"![{shown} under attack, seed {seed}](images/{path})"]
        lines.append("")
    return "\n".join(lines)


def pictures_of(study: Study, given: argparse.Namespace, seed: int) -> list[tuple[str, str]]:
    """The variant and file of each picture that is shown: one seed's are enough."""
    if seed != given.seeds[0]:
        return []
    return [(variant, picture) for variant in study.shown for picture in study.pictures]


def image_name(study: Study, variant: str, seed: int, picture: str) -> str:
    """What a copied picture is called in docs/images."""
    path = Path(picture)
    which = f"_{variant}" if len(study.shown) > 1 else ""
    return f"{study.name}_{path.stem}{which}_seed{seed}{path.suffix}"


def main(study: Study) -> None:
    """Everything."""
    parser = argparse.ArgumentParser(description=study.heading)
    if study.recipe:
        parser.add_argument("--data_path", type=Path, required=True, help="the recipe's data set")
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
        for variant, picture in pictures_of(study, given, seed):
            shown = images / image_name(study, variant, seed, picture)
            with Image.open(out / variant / picture) as drawn:  # a third of the size
                few = drawn.convert("RGB").quantize(256, Image.Quantize.FASTOCTREE)  # exact legends
            few.save(shown, optimize=True)
    text = section(study, given, measured)
    put_section(ROOT / "docs/results.md", f"{study.name}.py", text, title="Results")
    print(json.dumps({seed: list(records) for seed, records in measured.items()}))
