"""The objectives that benchmarks/training_cost.py compares, and what a step of each costs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from robustbench_gpm.config import CACHE
from robustbench_gpm.core import seed_everything
from robustbench_gpm.datasets import DATASETS, LoadOptions, load_split
from robustbench_gpm.flags import parse
from robustbench_gpm.losses import cross_entropy
from robustbench_gpm.models import ModelOptions, build_model
from robustbench_gpm.objectives import Objective
from robustbench_gpm.train_command import train_parser
from robustbench_gpm.training_options import TrainingOptions

DATA = DATASETS["digits"]
PLAIN = "baseline"
LINF, PIXELS = "32/255", "0.155"  # trained against, and attacked with
STEPS = 4  # timed together; lazy penalties are taken at every fourth


class Variant(NamedTuple):
    """Flags of main.py beside the recipe's, and the family (see the figure) they belong to."""

    family: str
    flags: str


IGR, FGR = "--igr_lamb 1 --igr_budget 0.1255", "--fgr_lamb 300"
L2 = "--igr_lamb 1 --igr_budget 0.5"
CHEAP = "--penalty_mode finite_difference --difference_step 0.01"
LAZY = "--penalty_mode lazy"
INTENSITY, LOCATION = "--adversarial_budget 0.1255", f"--adversarial_budget {PIXELS}"
THREE = "--adversarial_steps 3 --adversarial_step_size 0.5"
SEVEN = "--adversarial_steps 7 --adversarial_step_size 0.25"
PGD3, FLOW3 = (
    f"--adversarial pgd {INTENSITY} {THREE}",
    f"--adversarial flow-pgd {LOCATION} {THREE}",
)
VARIANTS: dict[str, Variant] = {
    PLAIN: Variant("plain", ""),
    "igr l1": Variant("gradient penalty", IGR),
    "igr l1 fd": Variant("gradient penalty", f"{IGR} {CHEAP}"),
    "igr l1 lazy": Variant("gradient penalty", f"{IGR} {LAZY}"),
    "igr l2": Variant("gradient penalty", f"{L2} --igr_norm l2"),
    "igr l2sq": Variant("gradient penalty", f"{L2} --igr_norm l2sq"),
    "gpm": Variant("gradient penalty", "--gpm_lamb 150"),
    "fgr 300": Variant("gradient penalty", FGR),
    "fgr 300 fd": Variant("gradient penalty", f"{FGR} {CHEAP}"),
    "fgr 300 lazy": Variant("gradient penalty", f"{FGR} {LAZY}"),
    "fgr 5000": Variant("gradient penalty", "--fgr_lamb 5000"),
    "edge": Variant("gradient penalty", "--edge_lamb 0.1"),
    "gnp": Variant("moved weights", "--gnp_alpha 0.8"),
    "sam": Variant("moved weights", "--sam_rho 0.1"),
    "asam": Variant("moved weights", "--sam_rho 1 --adaptive_sharpness"),
    "sagm": Variant("moved weights", "--sagm_rho 0.1"),
    "pgd 3": Variant("attacked intensity", PGD3),
    "pgd 7": Variant("attacked intensity", f"--adversarial pgd {INTENSITY} {SEVEN}"),
    "fgsm-rs": Variant("attacked intensity", f"--adversarial fgsm-rs {INTENSITY}"),
    "free 4": Variant("attacked intensity", f"--adversarial free --free_replays 4 {INTENSITY}"),
    "trades 3": Variant("attacked intensity", f"--adversarial trades {INTENSITY} {THREE}"),
    "flow 3": Variant("attacked location", FLOW3),
    "vertex 3": Variant(
        "attacked location", f"--adversarial flow-vertex {LOCATION} --adversarial_steps 3"
    ),
    "pgd 3 + awp": Variant("combination", f"{PGD3} --awp_gamma 0.01"),
    "fgr 300 + sam": Variant("combination", f"{FGR} --sam_rho 0.05"),
    "fgr 300 + flow 3": Variant("combination", f"{FGR} {FLOW3}"),
    "fgr 300 + pgd 3": Variant("combination", f"{FGR} {PGD3}"),
}


@dataclass(frozen=True)
class StepCost:
    """A step of an objective: time in plain steps, a ratio a round, and passes of the batch."""

    ratios: list[float]
    forwards: float
    backwards: float


def values_of(flags: Sequence[str]) -> dict[str, Any]:
    """What main.py makes of the flags, name -> value. Leaves with code 2 if they don't parse."""
    return parse(train_parser(DATA, "main.py"), flags)


def objective_of(values: Mapping[str, Any], batches: int) -> tuple[Objective, int]:
    """What main.py trains by, and how often in a row on each of so many batches."""
    options = TrainingOptions.of(values)
    return options.objective(batches), options.replays


def steps_of(epochs: int, replays: int) -> float:
    """Steps of a training in multiples of the plain one's: whole epochs over the replays."""
    return -(-epochs // replays) * replays / epochs


class Bench:
    """Networks under training on one batch of digits, each objective's own."""

    def __init__(self, names: Sequence[str]) -> None:
        options = LoadOptions(None, CACHE.expanduser())
        train, recipe = load_split(DATA.name, "train", options), DATA.recipe
        self.x, self.y = train.batch(slice(recipe.batch_size))
        self.batches = -(-len(train) // recipe.batch_size)
        shape = ModelOptions(
            len(train.classes), train.images.shape[1], train.images.shape[-1], DATA.mean, DATA.std
        )
        self.objectives, self.models, self.optimizers = {}, {}, {}
        for name in names:
            seed_everything(0)
            values = values_of(VARIANTS[name].flags.split())
            self.objectives[name] = objective_of(values, self.batches)[0]
            self.models[name] = build_model(DATA.default_model, shape).train()
            self.optimizers[name] = torch.optim.SGD(
                self.models[name].parameters(), recipe.lr, recipe.momentum
            )

    def seconds(self, name: str) -> float:
        """What STEPS steps take of a processor, whoever else it works for."""
        began = time.process_time()
        for number in range(STEPS):
            self.optimizers[name].zero_grad(set_to_none=True)
            objective = self.objectives[name].at(number / self.batches)
            objective.backward(self.models[name], self.x, self.y, cross_entropy)
            self.optimizers[name].step()
        return time.process_time() - began

    def passes(self, name: str) -> tuple[float, float]:
        """Forward passes of the batch in a step, and gradients that came back to the logits."""
        spent = {"forwards": 0, "backwards": 0}

        def back(gradient: torch.Tensor) -> None:
            spent["backwards"] += len(gradient)

        def forth(_model: object, _inputs: object, logits: torch.Tensor) -> None:
            spent["forwards"] += len(logits)
            if logits.requires_grad:
                logits.register_hook(back)  # type: ignore[no-untyped-call]

        handle = self.models[name].register_forward_hook(forth)
        self.seconds(name)
        handle.remove()
        whole = STEPS * len(self.x)
        return spent["forwards"] / whole, spent["backwards"] / whole


def measure(names: Sequence[str], rounds: int) -> dict[str, StepCost]:
    """What a step of each objective costs; the steps whose passes are counted warm up.

    On one thread, or its time would depend on how well each objective spreads over several.
    """
    torch.set_num_threads(1)
    bench = Bench([PLAIN, *(name for name in names if name != PLAIN)])
    passes = {name: bench.passes(name) for name in bench.models}
    ratios: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        for name, each in ratios.items():
            if name != PLAIN:
                before = bench.seconds(PLAIN)
                each.append(bench.seconds(name) / before)
        print(f"steps, round {turn + 1} of {rounds}", flush=True)
    return {name: StepCost(ratios[name] or [1.0], *passes[name]) for name in names}
