"""Random elastic deformations."""

from __future__ import annotations

import pytest
import torch
from attack_stage import COUNT, a_net, the_data

from robustbench_gpm.attacks.elastic import Elastic
from robustbench_gpm.attacks.smoothing import smoothed
from robustbench_gpm.core import Samples
from robustbench_gpm.deformation import max_displacement
from robustbench_gpm.losses import cross_entropy


@pytest.mark.parametrize("budget", [0.3, 1.0])
def test_elastic_fields_are_smooth_fill_the_budget_and_keep_the_worst(
    budget: float,
) -> None:
    net = a_net()
    x, y = the_data(net)
    attack = Elastic(draws=5)
    flow = attack.flow(net, x, y, budget=budget, samples=Samples(range(COUNT), seed=1))
    torch.testing.assert_close(max_displacement(flow), torch.full((COUNT,), budget).double())
    again = Samples(range(COUNT), seed=1)
    best, done = torch.full((COUNT,), -torch.inf).double(), torch.zeros(COUNT, dtype=torch.bool)
    net.eval()
    for _ in range(5):
        field = smoothed(again.uniform(flow), 0.125 * 8)
        field = budget * field / max_displacement(field)[:, None, None, None]
        with torch.no_grad():
            losses, hit = cross_entropy.judged(net, attack.render(x, field), y)
        best = torch.where(done, best, torch.where(hit, losses, torch.maximum(best, losses)))
        done = done | hit
    with torch.no_grad():
        losses, hit = cross_entropy.judged(net, attack.render(x, flow), y)
    net.train()
    torch.testing.assert_close(losses, best)
    assert torch.equal(hit, done)
