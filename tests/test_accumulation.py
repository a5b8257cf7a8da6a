"""Gradient accumulation: the large batch's gradient, whatever is put around it."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

from robustbench_gpm.losses import cross_entropy
from robustbench_gpm.objectives import (
    GPM,
    AdversarialOptions,
    FlowGradient,
    GNPOptions,
    InputGradient,
    Objective,
    Penalised,
)
from robustbench_gpm.objectives.accumulated import Accumulation
from robustbench_gpm.objectives.awp import AdversarialWeights
from robustbench_gpm.objectives.edges import EdgeOptions
from robustbench_gpm.objectives.sagm import SAGMOptions

INNER: dict[str, Objective] = {
    "baseline": Penalised(),
    "penalties": Penalised((InputGradient(1.0), GPM(30.0), FlowGradient(300.0, 0.0))),
}
OUTER = {
    "alone": None,
    "sam": GNPOptions(sam_rho=0.1),
    "gnp": GNPOptions(gnp_alpha=0.8),
    "sagm": SAGMOptions(0.05),
    "awp": AdversarialWeights(0.01),
    "pgd": AdversarialOptions("fgsm", adversarial_budget=0.05),
}


def network() -> nn.Module:
    torch.manual_seed(0)
    smooth = [nn.Conv2d(1, 4, 3), nn.SiLU(), nn.Flatten(), nn.Linear(4 * 16, 3)]
    return nn.Sequential(*smooth).double()


def batch(n: int = 11) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.rand(n, 1, 6, 6, dtype=torch.double), torch.randint(3, (n,))


def gradient(objective: Objective, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    model = network()
    torch.manual_seed(2)
    log = objective.backward(model, x, y, cross_entropy)
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]), log


@pytest.mark.parametrize("outer", OUTER)
@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("parts", [2, 4])
def test_the_gradient_is_that_of_the_large_batch(inner: str, outer: str, parts: int) -> None:
    x, y = batch()

    def built(middle: Objective) -> Objective:
        around = OUTER[outer]
        return middle if around is None else around.around(middle)

    whole, logged = gradient(built(INNER[inner]), x, y)
    parted, seen = gradient(built(Accumulation(parts).around(INNER[inner])), x, y)
    torch.testing.assert_close(parted, whole, rtol=1e-9, atol=1e-12)
    assert seen.keys() == logged.keys()
    for name, value in logged.items():
        torch.testing.assert_close(seen[name], value)


@dataclass(frozen=True)
class Watching:
    """Notes how many images each pass has."""

    sizes: list[int] = field(default_factory=list)

    def at(self, epoch: float) -> Watching:
        return self

    def backward(self, model: nn.Module, x: Tensor, y: Tensor, loss: object) -> dict[str, Tensor]:
        self.sizes.append(len(x))
        return {}


@pytest.mark.parametrize(
    ("n", "parts", "sizes"),
    [(8, 2, [4, 4]), (9, 4, [3, 2, 2, 2]), (5, 4, [3, 2]), (1, 3, [1]), (2, 8, [2])],
)
def test_parts_are_even_and_never_a_single_image(n: int, parts: int, sizes: list[int]) -> None:
    x, y = batch(n)
    watching = Watching()
    Accumulation(parts).around(watching).backward(network(), x, y, cross_entropy)
    assert watching.sizes == sizes


def test_edges_are_accumulated_too() -> None:
    x, y = batch(8)
    inner = EdgeOptions(1.0).around(Penalised())
    parted, log = gradient(Accumulation(2).around(inner), x, y)
    assert parted.isfinite().all()
    assert "edge" in log
