"""What the table-wide tests of attacks share: a small network, its images, and what to compare."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustbench_gpm.attacks import ATTACKS, Attack
from robustbench_gpm.attacks.flow import FlowPGD
from robustbench_gpm.losses import LOSSES

# Budgets that fool most of the images below.
LARGE = {"linf": 0.3, "l2": 3.0, "l1": 15.0, "l0": 20.0, "flow": 2.0, "flow-l2": 2.0}
LARGE |= {"tau": 1000.0, "union": 5.0, "composed": 5.0}
COUNT = 8

# What makes attacks slow, lowered; less smoothness asked of stAdv; Carlini and Wagner's few steps
# made large. FlowPGD keeps its steps, which are a fixed share of the budget.
LOWER = {
    "evaluations": 15,
    "finish": 15,
    "initial_constant": 1.0,
    "learning_rate": 0.05,
    "polish": 5,
    "queries": 80,
    "restarts": 2,
    "samples_per_gradient": 2,
    "search_steps": 3,
    "steps": 15,
    "targets": 3,
    "tau": 0.005,
}
GROW = ("initial_constant", "learning_rate")


def quick(attack: Attack) -> Attack:
    """The attack with the limits that make it slow lowered, and those of its parts."""
    if isinstance(attack, FlowPGD):
        return attack
    lowered: Attack = _lowered(attack)
    return lowered


def _lowered(part: Any) -> Any:
    if isinstance(part, tuple):
        return tuple(map(_lowered, part))
    if not is_dataclass(part) or isinstance(part, type):
        return part
    changes: dict[str, Any] = {}
    for field in fields(part):
        value, limit = getattr(part, field.name), LOWER.get(field.name)
        if isinstance(value, tuple):
            changes[field.name] = _lowered(value)
        elif limit is not None:
            changes[field.name] = limit if field.name in GROW else value and min(value, limit)
    return replace(part, **changes)


# The others raise losses of masks or of boxes.
ON_CLASSES = {name: attack for name, attack in ATTACKS.items() if attack.loss_name in LOSSES}
every_attack = pytest.mark.parametrize(
    "attack", [pytest.param(quick(attack), id=name) for name, attack in ON_CLASSES.items()]
)


def a_net() -> nn.Module:
    """A small network in float64, with batch norm and dropout, left in training mode."""
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Conv2d(6, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 4),
    ).double()
    norm = net[1]
    assert isinstance(norm, nn.BatchNorm2d)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.uniform_(norm.running_var, 0.05, 0.2)
    return net.train()


def the_data(net: nn.Module) -> tuple[Tensor, Tensor]:
    """Smooth images, labelled as the network sees them, its classes made about equally likely."""
    coarse = torch.rand(COUNT, 2, 4, 4, dtype=torch.float64, generator=torch.manual_seed(2))
    x = nn.functional.interpolate(coarse, size=8, mode="bilinear", align_corners=True)
    head = net[-1]
    assert isinstance(head, nn.Linear)
    net.eval()
    with torch.no_grad():
        head.bias -= net(x).mean(0)
        y = net(x).argmax(1)
    net.train()
    return x.contiguous(), y


@torch.no_grad()
def fooled(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    net.eval()
    verdict: Tensor = net(x).argmax(1) != y
    net.train()
    return verdict


def sizes(attack: Attack, net: nn.Module, x: Tensor, y: Tensor, budget: float) -> Tensor:
    found = attack.find(net, x, y, budget=budget)
    return attack.size(attack.within(x, found, budget))


def state_of(net: nn.Module) -> dict[str, Any]:
    return {
        "modes": [module.training for module in net.modules()],
        "tensors": {name: value.clone() for name, value in net.state_dict().items()},
        "flags": [p.requires_grad for p in net.parameters()],
        "gradients": [None if p.grad is None else p.grad.clone() for p in net.parameters()],
    }


def assert_same_state(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one["modes"] == other["modes"]
    assert one["flags"] == other["flags"]
    for name, value in one["tensors"].items():
        assert torch.equal(value, other["tensors"][name]), name
    for before, after in zip(one["gradients"], other["gradients"], strict=True):
        assert (before is None) == (after is None)
        assert before is None or torch.equal(before, after)


def unsettle(net: nn.Module) -> None:
    """Mixed modes, one parameter without gradient, one with a gradient waiting in it."""
    net[1].eval()
    net[0].bias.requires_grad_(False)
    net[4].weight.grad = torch.ones_like(net[4].weight)
