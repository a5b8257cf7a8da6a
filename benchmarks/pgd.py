"""PGD here, in torchattacks and in foolbox: seconds and robust accuracy, side by side.

    python benchmarks/pgd.py --checkpoint checkpoints/<name> --data_path data/cifar10

The same model, images, budget, steps and step size for all. After a warm-up on the first batch
every round runs all of them in the same order (A B C D, A B C D, ...); the median round counts.
What an attack found is judged by the model itself, as it was loaded. `fused copy` searches
on the accelerated copy, and its time includes making the copy. The evaluator as a whole is measured
by evaluator.py.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import eagerpy as ep
import foolbox
import torch
import torchattacks
from torch import Tensor, nn

from robustbench_gpm.attacks.pgd import PGD
from robustbench_gpm.checkpoint import load
from robustbench_gpm.core import Samples, UserError, pick_device
from robustbench_gpm.datasets import LoadOptions, load_split
from robustbench_gpm.fast import accelerated

Contender = Callable[[nn.Module, list[Tensor], list[Tensor]], list[Tensor]]
STEPS, STEP_SIZE = 20, 0.125  # of the budget


@dataclass(frozen=True)
class Result:
    """Median seconds over the rounds, and the share of images the model still gets right."""

    seconds: float
    spread: float
    robust_accuracy: float


def contenders(budget: float) -> dict[str, Contender]:
    """Each takes a model, batches of images and of labels, and returns the perturbed batches."""

    def here(model: nn.Module, xs: list[Tensor], ys: list[Tensor]) -> list[Tensor]:
        attack, found, first = PGD(steps=STEPS, step_size=STEP_SIZE), [], 0
        for x, y in zip(xs, ys, strict=True):
            samples = Samples(range(first, first + len(x)))
            found.append(attack(model, x, y, budget=budget, samples=samples))
            first += len(x)
        return found

    def evaluator(model: nn.Module, xs: list[Tensor], ys: list[Tensor]) -> list[Tensor]:
        copy, _ = accelerated(model, xs[0])
        return here(copy, xs, ys)

    def by_torchattacks(model: nn.Module, xs: list[Tensor], ys: list[Tensor]) -> list[Tensor]:
        attack = torchattacks.PGD(model, eps=budget, alpha=STEP_SIZE * budget, steps=STEPS)
        return [attack(x, y) for x, y in zip(xs, ys, strict=True)]

    def by_foolbox(model: nn.Module, xs: list[Tensor], ys: list[Tensor]) -> list[Tensor]:
        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=xs[0].device)
        attack = foolbox.attacks.LinfPGD(rel_stepsize=STEP_SIZE, steps=STEPS)
        found = []
        for x, y in zip(xs, ys, strict=True):
            criterion = foolbox.criteria.Misclassification(ep.astensor(y))
            found.append(attack.run(wrapped, ep.astensor(x), criterion, epsilon=budget).raw)
        return found

    return {
        "here, fused copy": evaluator,
        "here, plain": here,
        "torchattacks": by_torchattacks,
        "foolbox": by_foolbox,
    }


def compare(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    entrants: Mapping[str, Contender],
    *,
    batch_size: int,
    rounds: int,
) -> dict[str, Result]:
    """Time every entrant `rounds` times in turn on images x (N,C,H,W) with labels y (N,)."""
    xs, ys = list(x.split(batch_size)), list(y.split(batch_size))
    seconds: dict[str, list[float]] = {name: [] for name in entrants}
    accuracy: dict[str, float] = {}
    for entrant in entrants.values():
        entrant(model, xs[:1], ys[:1])
    for _ in range(rounds):
        for name, entrant in entrants.items():
            _wait(x.device)
            begun = time.perf_counter()
            found = entrant(model, xs, ys)
            _wait(x.device)
            seconds[name].append(time.perf_counter() - begun)
            accuracy.setdefault(name, _accuracy(model, found, ys))
    return {
        name: Result(statistics.median(taken), max(taken) - min(taken), accuracy[name])
        for name, taken in seconds.items()
    }


def table(results: Mapping[str, Result], reference: str = "torchattacks") -> str:
    """A line an entrant: seconds, their spread, time relative to the reference, accuracy."""
    base = results[reference].seconds
    lines = [f"{'':17}{'seconds':>9}{'spread':>9}{'ratio':>9}{'robust accuracy':>18}"]
    for name, result in results.items():
        lines.append(
            f"{name:17}{result.seconds:9.2f}{result.spread:9.2f}{result.seconds / base:9.3f}"
            f"{100 * result.robust_accuracy:17.2f}%"
        )
    return "\n".join(lines)


def machine(device: torch.device) -> str:
    """What it ran on."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{_processor()}, {torch.get_num_threads()} threads"
    return f"{name}; torch {torch.__version__}, python {platform.python_version()}"


def _processor() -> str:
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text(encoding="utf-8").splitlines() if listing.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@torch.no_grad()
def _accuracy(model: nn.Module, xs: Sequence[Tensor], ys: Sequence[Tensor]) -> float:
    right = sum(int((model(x).argmax(1) == y).sum()) for x, y in zip(xs, ys, strict=True))
    return right / sum(len(y) for y in ys)


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--checkpoint", type=Path, required=True, help="a folder main.py wrote")
    parser.add_argument("--data_path", type=Path, help="where the checkpoint's data set lies")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--batch_size", type=int, default=100)
    parser.add_argument("--budget", type=float, default=8.0, help="linf, in 1/255")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Load, compare, print; 2 after a mistake in the arguments."""
    given = _arguments(arguments)
    try:
        device = pick_device(given.device)
        checkpoint = load(given.checkpoint)
        options = LoadOptions(given.data_path, given.data_path or Path("data"), download=False)
        split = load_split(checkpoint.card.data_name, "test", options).limit(given.images)
    except UserError as error:
        print(f"pgd.py: {error}", file=sys.stderr)
        return 2
    x, y = split.batch(slice(None))
    model, x, y = checkpoint.model.to(device).eval(), x.to(device), y.to(device)
    for parameter in model.parameters():
        parameter.requires_grad_(False)  # a favour to the others; the attacks here do so themselves
    print(
        f"PGD-{STEPS} linf {given.budget:g}/255, {len(x)} images of {checkpoint.card.data_name}, "
        f"batches of {given.batch_size}, median of {given.rounds}; {checkpoint.name}, "
        f"clean accuracy {100 * _accuracy(model, [x], [y]):.2f}%"
    )
    entrants = contenders(given.budget / 255)
    results = compare(model, x, y, entrants, batch_size=given.batch_size, rounds=given.rounds)
    print(table(results))
    print(machine(device))
    return 0


if __name__ == "__main__":
    sys.exit(main())
