"""What the tests of adversarial training share: networks, batches, plain gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from robustbench_gpm.attacks import Attack
from robustbench_gpm.attacks.flow import FlowPGD
from robustbench_gpm.attacks.pgd import PGD
from robustbench_gpm.core import Loss
from robustbench_gpm.losses import cross_entropy
from robustbench_gpm.objectives import (
    Objective,
    Penalised,
)
from robustbench_gpm.objectives.trades import Trades

INTENSITY = PGD(steps=3, step_size=0.5, early_stop=False)
FLOW = FlowPGD(steps=3, step_size=0.5, early_stop=False)
Loose = Callable[[nn.Module], Tensor]  # a model -> a loss written out plainly


def network() -> nn.Module:
    torch.manual_seed(0)
    first = (nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Softplus())
    return nn.Sequential(*first, nn.Dropout(0.2), nn.Flatten(), nn.Linear(4 * 16, 5)).double()


def without_draws() -> nn.Module:
    return nn.Sequential(*(m for m in network() if not isinstance(m, nn.Dropout)))


def batch(size: int = 6) -> tuple[Tensor, Tensor]:
    x = torch.rand(size, 2, 6, 6, dtype=torch.double)
    x[0, :, 0], x[1, :, 0] = 0.0, 1.0  # values that a perturbation would drive out of [0,1]
    return x, torch.randint(0, 5, (size,))


def gradients(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def slope(model: nn.Module, loss: Loose) -> Tensor:
    """The gradient, in all weights, of a loss written out plainly."""
    found = torch.autograd.grad(loss(model), list(model.parameters()))
    return torch.cat([g.flatten() for g in found])


def same_state(one: nn.Module, other: nn.Module) -> None:
    for name, value in one.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name], msg=name)


def kl(model: nn.Module, x: Tensor, other: Tensor) -> Tensor:
    p, q = model(x).log_softmax(1), model(other).log_softmax(1)
    return (p.exp() * (p - q)).sum(1)


def run(objective: Objective, model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    torch.manual_seed(3)
    return objective.backward(model, x, y, cross_entropy)


def trades(attack: Attack = INTENSITY, inner: Objective | None = None, beta: float = 6.0) -> Trades:
    return Trades(attack, 0.1, beta, inner or Penalised())


def attacked(objective: Trades, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The images that `run` attacks."""
    torch.manual_seed(3)
    return objective.attacked(copy.deepcopy(model), x, y, cross_entropy)


@dataclass(frozen=True)
class Halves:
    """An objective on each half of the batch, one after the other."""

    inner: Objective

    def backward(self, model: nn.Module, x: Tensor, y: Tensor, loss: Loss) -> dict[str, Tensor]:
        for half in torch.arange(len(x)).flip(0).chunk(2):
            log = self.inner.backward(model, x[half], y[half], loss)
        return log

    def at(self, epoch: float) -> Halves:
        return replace(self, inner=self.inner.at(epoch))
