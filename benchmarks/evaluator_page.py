"""What benchmarks/evaluator.py measured: kept as JSON, and written up as a page and a figure."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from evaluator_figure import figure_of
from measured import PARTS, Entry, case_of, robust, standing
from pages import put_section

from robustbench_gpm.report.saving import save

IMAGE = "benchmark_evaluator.png"
HEADS = {
    "verdict": """### The verdict at one linf budget

The standard AutoAttack out of torchattacks' parts: APGD on the cross-entropy, APGD and FAB at every
wrong class, Square, each on the clean images of the samples that those before it left standing. The
rows below it are its parts: accuracy after each, and the cost of each alone.""",
    "curve": """### A curve of ten linf budgets

`pgd` as `evaluate.py` runs it, beside torchattacks' PGD with the same steps and step size at every
budget. A sample is robust at a budget if no smaller one fooled it, for both.""",
    "pgd": """### PGD at one linf budget

The same two at a single budget, where no work is shared; "first step" is one whole step, tried
before the attack.""",
}


def render(parts: Mapping[str, Sequence[Entry]], docs: Path) -> Path:
    """Write the figure, and the section of the page between its two comments; return the page."""
    save(figure_of(parts), docs / "images" / IMAGE)
    return put_section(docs / "benchmarks.md", "evaluator.py", section(parts), title="Benchmarks")


def section(parts: Mapping[str, Sequence[Entry]]) -> str:
    """The Markdown of what has been measured."""
    blocks = [
        "## The evaluator against torchattacks",
        "Forwards and backwards count samples that passed through a network, clean predictions and "
        "the\nmodel's own verdicts included. Seconds are totals, and include making the copies of "
        "the model that\nare searched on. The ratio of seconds is to torchattacks: of the totals, "
        "and its median over the\nchunks of the images, on each of which all run in turn.",
        f"![Robust accuracy against time, and over ten budgets](images/{IMAGE})",
    ]
    for part in PARTS:
        entries = parts.get(part, ())
        if entries:
            table = _curve_table(entries) if part == "curve" else _table(entries)
            blocks += [HEADS[part], "\n".join(table), *_notes(entries)]
    return "\n\n".join([*blocks, f"```\n{_commands(parts)}\n```"])


def _table(entries: Sequence[Entry]) -> list[str]:
    """A line a contender of every entry, and below it a line for each of its parts."""
    lines = [
        "| model, budget | | robust accuracy | forwards | backwards | seconds | ratio | median |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for entry in entries:
        case = case_of(entry)
        for name, result in entry["contenders"].items():
            cost = _cost(*(sum(result[kind]) for kind in ("forwards", "backwards", "seconds")))
            total, median = ratios(entry, name)
            accuracy = f"{robust(entry, name)[0]:.1f} %"
            lines.append(
                f"| {case} | **{name}** | {accuracy} | {cost} | {total:.3f} | {median:.3f} |"
            )
            case = ""
            if len(result["stages"]) > 1:
                lines += _stage_lines(entry, name)
    return lines


def _stage_lines(entry: Entry, name: str) -> list[str]:
    lines, result = [], entry["contenders"][name]
    for stage, accuracy in zip(result["stages"], standing(entry, name), strict=True):
        kinds = ("forwards", "backwards", "seconds")
        cost = _cost(*(result["stages"][stage][kind] for kind in kinds))
        lines.append(f"| | - {stage} | {accuracy:.1f} % | {cost} | | |")
    return lines


def _curve_table(entries: Sequence[Entry]) -> list[str]:
    budgets = [f"{255 * budget:.2g}" for budget in entries[0]["budgets"]]
    lines = [
        f"| model | | forwards | backwards | seconds | ratio | median | {' | '.join(budgets)} |",
        "|---" * (7 + len(budgets)) + "|",
    ]
    for entry in entries:
        title = entry["title"]
        for name, result in entry["contenders"].items():
            cost = _cost(*(sum(result[kind]) for kind in ("forwards", "backwards", "seconds")))
            total, median = ratios(entry, name)
            accuracy = " | ".join(f"{share:.1f}" for share in robust(entry, name))
            lines.append(
                f"| {title} | **{name}** | {cost} | {total:.3f} | {median:.3f} | {accuracy} |"
            )
            title = ""
    return [*lines, "", "The last columns: robust accuracy in per cent at the budget, in 1/255."]


def ratios(entry: Entry, name: str) -> tuple[float, float]:
    """Seconds of a contender to the reference's: of the totals, and the median over the chunks."""
    mine = entry["contenders"][name]["seconds"]
    base = entry["contenders"][entry["reference"]]["seconds"]
    each = [own / other for own, other in zip(mine, base, strict=True)]
    return sum(mine) / sum(base), statistics.median(each)


def _notes(entries: Sequence[Entry]) -> list[str]:
    """Who was fooled by one side alone, and what all was measured on."""
    told = []
    for entry in entries:
        for name in entry["contenders"]:
            if name != entry["reference"] and len(entry["budgets"]) == 1:
                only, missed = _alone(entry, name)
                told.append(
                    f"- {case_of(entry)}: {only} images are fooled by {name} alone, {missed} by "
                    f"{entry['reference']} alone; {name} searched on {_copies(entry, name)}."
                )
    ran: dict[str, list[str]] = {}
    for entry in entries:
        few = "" if entry["limits"] == {"steps": 100, "queries": 5000} else " LOWERED LIMITS."
        line = (
            f"{entry['images']} test images in chunks of {entry['chunk']}. Machine: "
            f"{entry['machine']}, torchattacks {entry['torchattacks']}. Commit {entry['commit']}, "
            f"{entry['when'][:10]}.{few}"
        )
        ran.setdefault(line, []).append(case_of(entry))
    notes = list(ran) if len(ran) == 1 else [f"{'; '.join(on)}: {ln}" for ln, on in ran.items()]
    return ["\n".join(told), *notes] if told else notes


def _copies(entry: Entry, name: str) -> str:
    """What a contender searched on."""
    search = entry["contenders"][name]["search"]
    kinds = {
        "fused": "batch norms folded",
        "channels_last": "channels last",
        "bfloat16": "bfloat16",
    }
    had = [words for fact, words in kinds.items() if search.get(fact)]
    return f"a copy ({', '.join(had)})" if had else "the model itself"


def _alone(entry: Entry, name: str) -> tuple[int, int]:
    """How many images a contender alone fools, and how many the reference alone."""
    top = len(entry["budgets"])
    mine, other = (
        [level < top for level in entry["contenders"][who]["levels"]]
        for who in (name, entry["reference"])
    )
    pairs = list(zip(mine, other, strict=True))
    return pairs.count((True, False)), pairs.count((False, True))


def _cost(forwards: int | None, backwards: int | None, seconds: float | None) -> str:
    counts = ["" if count is None else f"{count:,}" for count in (forwards, backwards)]
    return " | ".join([*counts, "" if seconds is None else f"{seconds:.1f}"])


def _commands(parts: Mapping[str, Sequence[Entry]]) -> str:
    """What measured all this, each command in lines of a page's width."""
    every = dict.fromkeys(entry["command"] for entries in parts.values() for entry in entries)
    wrapper = textwrap.TextWrapper(
        96, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )
    wrapped = [" \\\n".join(wrapper.wrap(command)) for command in every]
    return "\n".join([*wrapped, "python benchmarks/evaluator.py --render"])
