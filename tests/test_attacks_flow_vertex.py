"""The attack that looks for each pixel's best place in the whole ball."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_attacks_parity import digits as digits  # noqa: PLC0414 - a fixture
from torch import Tensor, nn

from robustbench_gpm.attacks import ATTACKS
from robustbench_gpm.attacks.flow_vertex import MOST, FlowVertex, candidates
from robustbench_gpm.core import Samples
from robustbench_gpm.deformation import Padding, warp

VERTEX = ATTACKS["flow-vertex"]


class Linear(nn.Module):
    """Two classes whose lead is linear in the image, colour by colour."""

    def __init__(self, shape: tuple[int, ...], shift: float = 0.0) -> None:
        super().__init__()
        weight = torch.randn(shape, dtype=torch.double, generator=torch.manual_seed(4))
        self.weight, self.shift = nn.Parameter(weight), shift

    def forward(self, x: Tensor) -> Tensor:
        lead = (self.weight * x).flatten(1).sum(1) - self.shift
        return torch.stack((lead, -lead), dim=1)


def best_by_hand(weight: Tensor, x: Tensor, budget: float, padding: Padding) -> Tensor:
    """The lowest lead any flow of the ball reaches: every pixel over a fine grid of the box."""
    ticks = torch.linspace(-budget, budget, 31, dtype=torch.double)
    lowest = torch.full_like(x[:, 0], torch.inf)
    for right in ticks:
        for down in ticks:
            place = torch.stack((right, down)).view(1, 2, 1, 1).expand(len(x), -1, *x.shape[2:])
            lowest = torch.minimum(lowest, (weight * warp(x, place, padding)).sum(1))
    return lowest.flatten(1).sum(1)


@pytest.mark.parametrize("padding", ["border", "zeros", "reflection"])
@pytest.mark.parametrize("budget", [0.4, 1.0, 2.3])
def test_the_flow_is_the_best_of_the_ball_for_a_linear_model(
    budget: float, padding: Padding
) -> None:
    x = torch.rand(3, 2, 6, 7, dtype=torch.double, generator=torch.manual_seed(3))
    y = torch.zeros(3, dtype=torch.int64)
    model = Linear((2, 6, 7), shift=-100.0)  # never fooled, so every attack goes to its end
    wanted = best_by_hand(model.weight.detach(), x, budget, padding)
    attack = FlowVertex(padding=padding, steps=3)
    flow = attack.flow(model, x, y, budget=budget)
    lead = (model.weight * warp(x, flow, padding)).flatten(1).sum(1)
    assert bool((lead <= wanted + 1e-9).all())
    climbed = ATTACKS["flow-pgd"].flow(model, x, y, budget=budget)
    trapped = (model.weight * warp(x, climbed, "border")).flatten(1).sum(1)
    assert padding != "border" or bool(trapped.mean() > lead.mean() + 0.01)
    assert flow.abs().max() <= budget + 1e-12


def test_fools_exactly_where_the_closed_form_says_so() -> None:
    x = torch.rand(2, 1, 5, 5, dtype=torch.double, generator=torch.manual_seed(8))
    y = torch.zeros(2, dtype=torch.int64)
    lowest = best_by_hand(Linear((1, 5, 5)).weight.detach(), x, 0.6, "border")
    for slack, falls in ((1e-6, True), (-1e-6, False)):
        for i in range(2):
            model = Linear((1, 5, 5), shift=float(lowest[i]) + slack)
            one = slice(i, i + 1)
            images = FlowVertex()(model, x[one], y[one], budget=0.6)
            assert bool((model(images).argmax(1) != 0).all()) == falls


def test_pixels_nothing_depends_on_stay_at_rest() -> None:
    x = torch.rand(1, 1, 5, 5, dtype=torch.double, generator=torch.manual_seed(8))
    model = Linear((1, 5, 5), shift=-100.0)
    with torch.no_grad():
        model.weight[:, :2] = 0
    flow = FlowVertex().flow(model, x, torch.zeros(1, dtype=torch.int64), budget=0.5)
    assert not bool(flow[:, :, :2].any())
    assert bool(flow[:, :, 2:].any())


def test_places_to_try_are_rest_whole_pixels_and_the_ends() -> None:
    assert sorted(candidates(0.3)) == [-0.3, 0.0, 0.3]
    assert sorted(candidates(1.0)) == [-1.0, 0.0, 1.0]
    assert sorted(candidates(2.5)) == [-2.5, -2.0, -1.0, 0.0, 1.0, 2.0, 2.5]
    assert len(candidates(100.0)) <= 2 * MOST + 3


@pytest.mark.parametrize("budget", [0.1, 0.15, 0.2, 0.25])
def test_is_stronger_than_ascent_with_the_same_steps(
    budget: float, digits: tuple[nn.Module, Tensor, Tensor]
) -> None:
    net, x, y = digits
    x, y = x[:200], y[:200]

    def standing(name: str) -> int:
        samples = Samples(range(len(x)))
        images = ATTACKS[name](net, x, y, budget=budget, samples=samples)
        with torch.no_grad():
            return int((net(images).argmax(1) == y).sum())

    ours = standing("flow-vertex")
    assert ours <= standing("flow-pgd")
    assert ours <= standing("flow-apgd") + 1
    assert standing("stadv") <= ours + 1


class Middle(nn.Module):
    """Reads one pixel: class 1 from 0.002 above its colour on the ramp below."""

    def forward(self, x: Tensor) -> Tensor:
        lead = x[:, 0, x.shape[2] // 2, x.shape[3] // 2] - 0.004 * (x.shape[3] // 2) - 0.002
        return torch.stack((-lead, lead), dim=1)


@pytest.mark.parametrize("size", [8, 32, 224])
@pytest.mark.parametrize("name", ["flow-vertex", "flow-pgd", "flow-apgd", "stadv", "adef"])
def test_a_budget_in_pixels_means_the_same_at_every_size(name: str, size: int) -> None:
    """On a ramp of 0.004 a pixel the middle changes class half a pixel away."""
    ramp = 0.004 * torch.arange(size, dtype=torch.double)
    x = ramp.expand(1, 1, size, size).contiguous()
    y = torch.zeros(1, dtype=torch.int64)
    attack = replace(ATTACKS[name], sigma=0.0) if name == "adef" else ATTACKS[name]
    for budget, falls in ((0.49, False), (0.51, True)):
        images = attack(Middle(), x, y, budget=budget)
        assert bool(Middle()(images).argmax(1) == 1) == falls
