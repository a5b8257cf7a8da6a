"""What a training step costs under each objective, as a multiple of the plain step.

    python benchmarks/objectives.py

VGG-11 with batch norm on random images of 32 pixels, as it is written and, where no second
derivative is taken, compiled. After a warm-up, in which things are compiled, all take steps in turn
(A B C ..., A B C ...); the median counts. Peak memory is that of a process of its own that takes
two eager steps, above what it held before. Writes its section of docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from pages import put_section
from pgd import machine
from torch import nn

from robustbench_gpm.compiled import compiled, first_order
from robustbench_gpm.core import pick_device
from robustbench_gpm.losses import cross_entropy
from robustbench_gpm.models import ModelOptions, build_model
from robustbench_gpm.objectives import (
    GPM,
    AdversarialOptions,
    FlowGradient,
    InputGradient,
    Objective,
    Penalised,
    PenaltyMode,
)
from robustbench_gpm.objectives.awp import AdversarialWeights
from robustbench_gpm.objectives.edges import EdgeOptions
from robustbench_gpm.objectives.parameter_gradient import GNPOptions
from robustbench_gpm.objectives.sagm import SAGMOptions
from robustbench_gpm.trainer import MixedPrecision

ROOT = Path(__file__).resolve().parent.parent
PLAIN = "baseline"
NORMALISED = ((0.49, 0.48, 0.45), (0.25, 0.24, 0.26))
FIGURES = 5  # rounds that are counted
PRECISIONS, WAYS = ("fp32", "bf16"), ("eager", "compiled")
Figures = tuple[float, float, float]  # median, least and largest


def objectives() -> dict[str, Objective]:
    """Every objective by what is typed for it."""
    plain = Penalised()
    flow, norm = FlowGradient(300.0), InputGradient(1.0)
    cheap, lazy = PenaltyMode("finite_difference"), PenaltyMode("lazy", lazy_steps=4)

    def against(attack: str, steps: int | None = None, inner: Objective = plain) -> Objective:
        options = AdversarialOptions(attack, adversarial_steps=steps)
        return options.around(inner)

    return {
        PLAIN: plain,
        "--igr_lamb 1": Penalised((norm,)),
        "--gpm_lamb 0.4": Penalised((GPM(0.4),)),
        "--fgr_lamb 300": Penalised((flow,)),
        "--fgr_lamb 300 --penalty_mode finite_difference": Penalised((flow,), cheap),
        "--fgr_lamb 300 --penalty_mode lazy": Penalised((flow,), lazy, batches=4),
        "--edge_lamb 1": EdgeOptions(1.0).around(plain),
        "--sam_rho 0.05": GNPOptions(sam_rho=0.05).around(plain),
        "--gnp_alpha 0.8": GNPOptions(gnp_alpha=0.8).around(plain),
        "--sagm_rho 0.05": SAGMOptions(0.05).around(plain),
        "--adversarial fgsm-rs": against("fgsm-rs"),
        "--adversarial free": against("free"),
        "--adversarial pgd, 3 steps": against("pgd", 3),
        "--adversarial pgd, 7 steps": against("pgd", 7),
        "--adversarial flow, 3 steps": against("flow", 3),
        "--adversarial trades, 3 steps": against("trades", 3),
        "--awp_gamma 0.01 --adversarial pgd, 3 steps": against(
            "pgd", 3, AdversarialWeights(0.01).around(plain)
        ),
    }


class Steps:
    """A network under training, on one batch of random images."""

    def __init__(self, batch_size: int, precision: str) -> None:
        torch.manual_seed(0)
        options = ModelOptions(10, 3, 32, *NORMALISED)
        self.model = build_model("vgg11", options).train()
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.01, momentum=0.9)
        self.x, self.y = torch.rand(batch_size, 3, 32, 32), torch.randint(10, (batch_size,))
        self.loss = MixedPrecision(cross_entropy, "cpu") if precision == "bf16" else cross_entropy

    def take(self, objective: Objective, number: int, model: nn.Module) -> float:
        """One step, the `number`-th of four an epoch, by a form of the model; its seconds."""
        began = time.perf_counter()
        self.optimizer.zero_grad(set_to_none=True)
        objective.at(number / 4).backward(model, self.x, self.y, self.loss)
        self.optimizer.step()
        return time.perf_counter() - began


def cases() -> list[tuple[str, str]]:
    """What is measured: objectives, each with the ways in which the model can run for it."""
    return [(name, way) for name, o in objectives().items() for way in WAYS[: 1 + first_order(o)]]


def measure(batch_size: int, precision: str, rounds: int) -> dict[tuple[str, str], Figures]:
    """Times of a step, by objective and way, as multiples of the plain eager one of its round.

    That one's own are in seconds. Lazy penalties are taken at every fourth step: a round is four
    steps of each.
    """
    steps, seconds = (
        Steps(batch_size, precision),
        {case: list[float]() for case in cases()},
    )
    models = {"eager": steps.model, "compiled": compiled(steps.model)}
    for turn in range(rounds + 1):
        made = objectives()
        for (name, way), measured in seconds.items():
            taken = sum(steps.take(made[name], number, models[way]) for number in range(4))
            if turn > 0:
                measured.append(taken / 4)
        print(f"{precision}, round {turn} of {rounds}", flush=True)
    plain = seconds[PLAIN, "eager"]
    ratios = {
        case: [one / other for one, other in zip(each, plain, strict=True)]
        for case, each in seconds.items()
    }
    ratios[PLAIN, "eager"] = plain
    return {case: (statistics.median(r), min(r), max(r)) for case, r in ratios.items()}


def peak_memory(name: str, batch_size: int) -> float:
    """MiB that two steps take at most, measured in a process of its own."""
    command = [sys.executable, __file__, "--memory_of", name, "--batch_size", str(batch_size)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout)


def _peak_here(name: str, batch_size: int) -> float:
    steps = Steps(batch_size, "fp32")
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak starts anew (Linux)
    before = _kibibytes("VmRSS")
    for number in range(2):
        steps.take(objectives()[name], number, steps.model)
    return (_kibibytes("VmHWM") - before) / 1024


def _kibibytes(field: str) -> int:
    """A line of this process's status."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition(f"{field}:")[2].split()[0])


def section(batch_size: int, rounds: int) -> str:
    """The page's section."""
    found = {precision: measure(batch_size, precision, rounds) for precision in PRECISIONS}
    single, half = (found[precision][PLAIN, "eager"][0] for precision in PRECISIONS)
    columns = [f"{precision}, {way}" for precision in PRECISIONS for way in WAYS]
    lines = [
        "## A training step under each objective",
        "",
        f"VGG-11 with batch norm, {batch_size} random images of 32 pixels; multiples of the plain",
        f"eager step of the same precision ({single:.2f} s in fp32, {half:.2f} s in bf16), median",
        f"of {rounds} rounds of four steps in turn (least to largest). What takes a second",
        "derivative cannot be compiled. Memory is what two eager fp32 steps add at most. A step of",
        "free training counts once for each replay.",
        "",
        "```",
        f"python benchmarks/objectives.py --batch_size {batch_size} --rounds {rounds}",
        "```",
        "",
        f"{machine(pick_device('cpu'))}.",
        "",
        f"| objective | {' | '.join(columns)} | memory, MiB |",
        f"|{'---|' * (len(columns) + 2)}",
    ]
    for name in objectives():
        cells = [cell(found[precision], name, way) for precision in PRECISIONS for way in WAYS]
        lines.append(f"| `{name}` | {' | '.join(cells)} | {peak_memory(name, batch_size):.0f} |")
    return "\n".join(lines)


def cell(found: dict[tuple[str, str], Figures], name: str, way: str) -> str:
    """One entry of the table; empty where nothing was measured."""
    if (name, way) not in found:
        return ""
    if (name, way) == (PLAIN, "eager"):
        return "1"
    median, least, largest = found[name, way]
    return f"{median:.2f} ({least:.2f}-{largest:.2f})"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write, or one process's part of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=FIGURES)
    parser.add_argument("--memory_of", help="print the peak memory of this objective, in MiB")
    given = parser.parse_args(arguments)
    if given.memory_of:
        print(_peak_here(given.memory_of, given.batch_size))
        return
    text = section(given.batch_size, given.rounds)
    print(text)
    put_section(ROOT / "docs/benchmarks.md", "objectives.py", text, title="Benchmarks")


if __name__ == "__main__":
    main()
