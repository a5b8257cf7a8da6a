"""APGD: what it costs, what it leaves standing, and torchattacks' on the same network."""

from __future__ import annotations

import pytest
import torch
import torchattacks
from attack_stage import fooled
from sklearn.datasets import load_digits
from torch import Tensor, nn

from robustbench_gpm.attacks.apgd import APGD, AutoPGD, TargetedAPGD
from robustbench_gpm.attacks.base import attacking
from robustbench_gpm.attacks.climb import Climbed
from robustbench_gpm.attacks.threats import THREATS
from robustbench_gpm.core import Samples
from robustbench_gpm.losses import LOSSES

BUDGETS = {"linf": 0.0625, "l2": 0.5, "l1": 2.5}
NORMS = ["linf", "l2", "l1"]
Digits = tuple[nn.Module, Tensor, Tensor]


@pytest.fixture(scope="module")
def digits() -> Digits:
    """A small network trained on handwritten digits, and 64 that it has not seen and gets right."""
    data = load_digits()
    x, y = torch.tensor(data.images).float()[:, None] / 16, torch.tensor(data.target)
    torch.manual_seed(0)
    layers = nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)
    net = nn.Sequential(nn.Flatten(), *layers)
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(15):
        for batch in torch.randperm(1397).split(64):
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(x[batch]), y[batch]).backward()
            optimiser.step()
    net, x, y = net.double().eval(), x[1397:].double(), y[1397:]
    right = net(x).argmax(1) == y
    return net, x[right][:64].contiguous(), y[right][:64]


def test_a_target_beyond_the_likeliest_is_tried_where_those_before_it_fail(digits: Digits) -> None:
    net, x, y = digits
    counts, costs = [], []
    for targets in (1, 9, 50):
        samples = Samples(range(len(x)))
        images = TargetedAPGD(steps=20, targets=targets)(net, x, y, budget=0.0625, samples=samples)
        robust = ~fooled(net, images, y)
        counts.append(int(robust.sum()))
        costs.append(samples.forwards)
        assert (samples.forwards[robust] == 1 + 21 * min(targets, 9)).all()
        assert (samples.backwards[robust] == 20 * min(targets, 9)).all()
    assert counts[0] >= counts[1] == counts[2] > 0
    assert torch.equal(costs[1], costs[2])
    assert (costs[0][~robust] <= costs[1][~robust]).all()


def test_an_image_that_is_wrong_as_it_is_costs_the_targeted_attack_one_look(
    digits: Digits,
) -> None:
    net, x, y = digits
    samples = Samples(range(len(x)))
    images = TargetedAPGD(steps=3)(net, x, (y + 1) % 10, budget=0.1, samples=samples)
    assert torch.equal(images, x)
    assert samples.forwards.unique().tolist() == [1]
    assert samples.backwards.unique().tolist() == [0]


@pytest.mark.parametrize("norm", NORMS)
def test_who_is_fooled_leaves_and_spends_no_more(norm: str, digits: Digits) -> None:
    net, x, y = digits
    spent, verdicts = [], []
    for early_stop in (True, False):
        samples = Samples(range(len(x)))
        attack = APGD(norm, steps=20, early_stop=early_stop, restarts=2)
        images = attack(net, x, y, budget=BUDGETS[norm], samples=samples)
        spent.append(samples.forwards)
        verdicts.append(fooled(net, images, y))
    assert torch.equal(*verdicts)
    assert 0 < verdicts[0].sum() < len(x)
    assert (spent[0] <= spent[1]).all()
    assert spent[0][verdicts[0]].sum() < spent[1][verdicts[0]].sum()
    run = 21 + 2 * (norm == "l1")
    assert (spent[0][~verdicts[0]] == 2 * run).all()


class Noisy(nn.Module):
    """The network with other noise at every pass."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.passes = net, 0
        self.noise = torch.Generator().manual_seed(0)

    def forward(self, x: Tensor) -> Tensor:
        self.passes += len(x)
        noise = torch.randn(x.shape, generator=self.noise, dtype=x.dtype)
        output: Tensor = self.net(x + 0.3 * noise)
        return output


def test_a_random_model_is_met_with_the_mean_of_many_passes(digits: Digits) -> None:
    net, x, y = digits
    losses = []
    for draws in (1, 12):
        samples, noisy = Samples(range(len(x))), Noisy(net)
        attack = APGD(steps=10, samples_per_gradient=draws, early_stop=False)
        images = attack(noisy, x, y, budget=0.0625, samples=samples)
        assert samples.forwards.tolist() == [11 * draws] * len(x)
        assert samples.backwards.tolist() == [10 * draws] * len(x)
        assert noisy.passes == 11 * draws * len(x)
        noise = [LOSSES["cross_entropy"](noisy, images, y) for _ in range(50)]
        losses.append(float(torch.stack(noise).detach().mean()))
    assert losses[1] > losses[0]


@pytest.mark.parametrize("norm", NORMS)
def test_a_run_climbs_on_from_where_it_is_told(norm: str, digits: Digits) -> None:
    net, x, y = digits
    loss, budget = LOSSES["margin"], BUDGETS[norm] / 2

    def ran(steps: int, start: Tensor | None) -> Climbed:
        attack = APGD(norm, steps=steps, early_stop=False)
        with attacking(net):
            return attack.run(net, x, y, budget, loss, Samples(range(len(x))), start)

    first = ran(20, None)
    torch.testing.assert_close(loss(net, first.best, y), first.loss)
    assert torch.equal(first.fooled, fooled(net, first.found, y))
    assert torch.equal(first.found[~first.fooled], first.best[~first.fooled])
    second = ran(10, first.best)
    assert (second.loss >= first.loss - 1e-12).all()
    assert (THREATS[norm].size(second.best - x) <= budget * (1 + 1e-9)).all()
    far = ran(1, (x + 0.5).clamp(0, 1))
    assert (THREATS[norm].size(far.best - x) <= budget * (1 + 1e-9)).all()


def their_start(x: Tensor, budget: float, norm: str) -> Tensor:
    torch.manual_seed(0)
    if norm == "linf":
        noise = 2 * torch.rand(x.shape) - 1
        size = noise.abs().flatten(1).amax(1)
    else:
        noise = torch.randn(x.shape)
        size = noise.flatten(1).norm(dim=1)
    return x + budget * noise / size.view(-1, 1, 1, 1)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_run_from_their_start_ends_where_torchattacks_does(
    norm: str, targeted: bool, digits: Digits
) -> None:
    """Sample by sample: in a batch their targeted l2 gives every sample the first one's step."""
    net, x, y = digits
    budget, steps = BUDGETS[norm], 50
    kind = torchattacks.APGDT if targeted else torchattacks.APGD
    other = kind(net, norm=norm.capitalize(), eps=budget, steps=steps)
    other.target_class = 2
    ours, theirs = [], []
    for i in range(16):
        image, label = x[i : i + 1], y[i : i + 1]
        torch.manual_seed(0)
        _, right, loss, _ = other.attack_single_run(image, label)
        theirs.append((float(loss), not bool(right)))
        attack: AutoPGD = APGD(norm, steps=steps, early_stop=False)
        if targeted:
            attack = TargetedAPGD(norm, steps=steps, early_stop=False)
            label = torch.stack((label, net(image).topk(2).indices[:, 1]), 1)
        start = their_start(image, budget, norm)
        with attacking(net):
            aim = LOSSES[attack.loss_name]
            got = attack.run(net, image, label, budget, aim, Samples([i]), start)
        ours.append((float(got.loss), bool(got.fooled)))
    assert [verdict for _, verdict in ours] == [verdict for _, verdict in theirs]
    a, b = torch.tensor(ours)[:, 0], torch.tensor(theirs)[:, 0]
    torch.testing.assert_close(a, b, rtol=0.02, atol=1e-3)
    assert ((a - b).abs() <= 1e-6 * (1 + b.abs())).double().mean() >= 0.75


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_no_softer_than_torchattacks(norm: str, targeted: bool, digits: Digits) -> None:
    net, x, y = digits
    budget = 0.7 * BUDGETS[norm]
    kind = torchattacks.APGDT if targeted else torchattacks.APGD
    theirs = fooled(net, kind(net, norm=norm.capitalize(), eps=budget, steps=20)(x, y), y)
    attack: AutoPGD = TargetedAPGD(norm, steps=20) if targeted else APGD(norm, steps=20)
    ours = fooled(net, attack(net, x, y, budget=budget), y)
    assert 0.05 * len(x) < theirs.sum() < 0.95 * len(x)
    assert ours.sum() >= theirs.sum()
