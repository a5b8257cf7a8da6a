"""stAdv: beside plain Adam, what the price of smoothness does, and the smoothing of what fooled."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from sklearn.datasets import load_digits
from test_attacks_parity import digits as digits  # noqa: PLC0414 - a fixture
from torch import Tensor, nn

from robustbench_gpm.attacks import ATTACKS
from robustbench_gpm.attacks.smoothness import smoothness
from robustbench_gpm.attacks.stadv import StAdv
from robustbench_gpm.attacks.stadv_lbfgs import StAdvLBFGS
from robustbench_gpm.core import Samples
from robustbench_gpm.deformation import identity_flow, to_pixels, warp
from robustbench_gpm.losses import margin

Digits = tuple[nn.Module, Tensor, Tensor]
STADV = ATTACKS["stadv"]
SIZE = 8


def by_adam(net: nn.Module, x: Tensor, y: Tensor, budget: float, rate: float) -> Tensor:
    """The usual bounded stAdv: 100 steps of Adam, the flow cut back to the bound after each."""
    flow = identity_flow(x).requires_grad_()
    optimiser = torch.optim.Adam([flow], rate)
    right = torch.ones(len(x), dtype=torch.bool)
    for _ in range(100):
        optimiser.zero_grad()
        losses, over = margin.judged(net, warp(x, flow), y)
        right &= ~over
        (0.05 * smoothness(flow, "diagonal") - losses).sum().backward()
        optimiser.step()
        with torch.no_grad():
            flow.clamp_(-budget, budget)
    return right & ~fooled_by(net, warp(x, flow.detach()), y)


@torch.no_grad()
def fooled_by(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    verdict: Tensor = net(x).argmax(1) != y
    return verdict


@pytest.mark.parametrize("rate", [to_pixels(0.01, SIZE), 0.1])
def test_is_never_softer_than_a_hundred_steps_of_adam(digits: Digits, rate: float) -> None:
    net = copy.deepcopy(digits[0]).float()
    data = load_digits()
    x = torch.tensor(data.images[897:1397]).float()[:, None] / 16
    y = torch.tensor(data.target[897:1397])
    assert len(x) == 500
    gains = []
    for budget in (0.1, 0.2, 0.3, 0.5):
        theirs = by_adam(net, x, y, budget, rate)
        found = STADV(net, x, y, budget=budget, samples=Samples(range(500)))
        ours = ~fooled_by(net, found, y)
        assert ours.sum() <= theirs.sum()
        assert (ours & ~theirs).sum() <= 2
        gains.append(int(theirs.sum() - ours.sum()))
    assert max(gains) > 10


def test_a_higher_price_makes_smoother_flows_and_fools_fewer(digits: Digits) -> None:
    net, x, y = digits[0], digits[1][:60], digits[2][:60]
    attack = StAdv(steps=60, over="tau")
    flows = {tau: attack.flow(net, x, y, budget=1 / tau) for tau in (0.001, 0.1, 1.0)}
    hits = {tau: fooled_by(net, warp(x, flow), y) for tau, flow in flows.items()}
    assert hits[0.001].all()
    assert hits[0.1].sum() > hits[1.0].sum() > 5
    hit = hits[1.0]
    rough = [smoothness(flow[hit], "diagonal").mean() for flow in flows.values()]
    assert rough[0] > rough[1] > 1.5 * rough[2]


@pytest.mark.parametrize("attack", [StAdv(steps=10), StAdvLBFGS(evaluations=20)])
def test_a_budget_of_a_price_is_one_over_tau(attack: StAdv | StAdvLBFGS, digits: Digits) -> None:
    net, x, y = digits
    free = replace(attack, over="tau")
    by_budget = free.flow(net, x[:3], y[:3], budget=100.0)
    by_field = replace(free, tau=77.0).flow(net, x[:3], y[:3], budget=100.0)
    assert torch.equal(by_budget, by_field)
    if isinstance(attack, StAdvLBFGS):
        unbound = replace(attack, tau=0.01).flow(net, x[:3], y[:3], budget=float("inf"))
        torch.testing.assert_close(by_budget, unbound)
    assert not torch.equal(by_budget, free.flow(net, x[:3], y[:3], budget=0.1))


def test_polish_smooths_what_fools_and_leaves_the_rest(digits: Digits) -> None:
    net, x, y = digits
    x, y = x[:60], y[:60]
    right = ~fooled_by(net, x, y)
    x, y = x[right], y[right]
    plain, polished = STADV, ATTACKS["stadv-smooth"]
    assert isinstance(plain, StAdv)
    assert isinstance(polished, StAdv)
    assert replace(polished, polish=None) == plain
    before, after = (attack.flow(net, x, y, budget=0.3) for attack in (plain, polished))
    hit = fooled_by(net, warp(x, before), y)
    assert torch.equal(hit, fooled_by(net, warp(x, after), y))
    assert 5 < hit.sum() < len(x)
    assert torch.equal(before[~hit], after[~hit])
    rough = [smoothness(flow[hit], "diagonal") for flow in (before, after)]
    assert bool((rough[1] <= rough[0]).all())
    assert rough[1].mean() < 0.7 * rough[0].mean()
    assert float(after.abs().max()) <= 0.3 + 1e-12
