"""DeepFool: closed forms of linear models, torchattacks' distances, and what it spends."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest
import torch
import torchattacks
from attack_stage import a_net, the_data
from test_attacks_oracles import Linear, linear, noise
from test_attacks_parity import digits as digits  # noqa: PLC0414 - a fixture
from test_attacks_table import passes_counted
from torch import Tensor, nn

from robustbench_gpm.attacks.deepfool import DeepFool
from robustbench_gpm.attacks.hyperplane import dual_size
from robustbench_gpm.attacks.threats import THREATS
from robustbench_gpm.core import Samples

NORMS = ["l2", "linf"]
every_norm = pytest.mark.parametrize("norm", NORMS)


def distances(net: nn.Module, x: Tensor, y: Tensor, images: Tensor, norm: str) -> Tensor:
    with torch.no_grad():
        fooled = net(images).argmax(1) != y
    return torch.where(fooled, THREATS[norm].size(images - x), inf)


@every_norm
@pytest.mark.parametrize("overshoot", [0.02, 0.5])
def test_one_step_finds_the_boundary_of_a_linear_model(norm: str, overshoot: float) -> None:
    model, x, y = linear(bias=0.0)
    model.bias = 0.3 - float(model.score(x).min())
    attack = DeepFool(norm=norm, overshoot=overshoot, halvings=1)  # type: ignore[arg-type]
    samples = Samples(range(5))
    found = attack.nearest(model, x, y, samples=samples)
    closest = model.score(x) / dual_size(model.weight.flatten(), norm)
    ratio = THREATS[norm].size(found - x) / closest
    torch.testing.assert_close(ratio, torch.full_like(ratio, 1 + overshoot))
    assert samples.forwards.tolist() == [4] * 5
    assert samples.backwards.tolist() == [1] * 5


@every_norm
def test_halving_the_last_step_takes_back_what_went_too_far(norm: str) -> None:
    model, x, y = linear(bias=0.0)
    model.bias = 0.3 - float(model.score(x).min())
    attack = DeepFool(norm=norm, overshoot=0.9, halvings=8)  # type: ignore[arg-type]
    found = attack.nearest(model, x, y)
    ratio = THREATS[norm].size(found - x) * dual_size(model.weight.flatten(), norm)
    ratio /= model.score(x)
    assert (ratio > 1).all()
    assert (ratio < 1.01).all()


@every_norm
def test_pixels_at_an_end_do_not_slow_it(norm: str) -> None:
    model = Linear(noise(1, 4, 4), 0.0)
    x = (model.weight < 0).double().expand(3, 1, 4, 4).clone()  # no weight can lower the score
    x[:, :, 0] = 0.5
    model.bias = 0.1 - float(model.score(x).min())
    found = DeepFool(norm=norm, steps=1).nearest(model, x, torch.ones(3).long())  # type: ignore[arg-type]
    assert (model.score(found) < 0).all()


def test_is_no_softer_than_torchattacks(digits: tuple[nn.Module, Tensor, Tensor]) -> None:
    net, x, y = digits[0], digits[1][:32], digits[2][:32]
    ours = distances(net, x, y, DeepFool().nearest(net, x, y), "l2")
    theirs = torchattacks.DeepFool(net, steps=20)(x, y).detach()
    found = distances(net, x, y, theirs, "l2")
    assert (ours < inf).all()
    both = found < inf
    assert both.sum() >= 12
    assert (ours <= 1.03 * found).all()
    assert ours[both].mean() <= found[both].mean()


@every_norm
def test_the_nearest_class_is_judged_in_the_norm(norm: str) -> None:
    # The first class's boundary is nearer in l2, the second's in linf: its gradient is spread out.
    weight = torch.zeros(3, 4).double()
    weight[1, 0], weight[2] = 2.0, 0.8
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3).double())
    with torch.no_grad():
        net[1].weight.copy_(weight)
        net[1].bias.copy_(torch.tensor([2.3, 1.0, 0.4]).double())
    x = torch.full((1, 1, 2, 2), 0.45).double()
    found = DeepFool(norm=norm).nearest(net, x, torch.tensor([0]))  # type: ignore[arg-type]
    assert int(net(found).argmax(1)) == (1 if norm == "l2" else 2)


@every_norm
def test_books_every_pass_and_spares_who_is_done(norm: str) -> None:
    net = a_net()
    x, y = the_data(net)
    y = torch.where(torch.arange(len(y)) == 0, (y + 1) % 4, y)  # the first is fooled already
    samples = Samples(range(len(x)))
    attack = DeepFool(norm=norm, overshoot=0.0, steps=6)  # type: ignore[arg-type]
    with passes_counted(net) as counted:
        found = attack.nearest(net, x, y, samples=samples)
    assert torch.equal(found[0], x[0])
    assert (int(samples.forwards[0]), int(samples.backwards[0])) == (1, 0)
    assert int(samples.forwards.sum()) == counted["forwards"]
    assert int(samples.backwards.sum()) == counted["backwards"]
    assert len(samples.backwards.unique()) > 2  # some were done before others


@every_norm
def test_the_budget_is_kept_and_a_batch_of_one_finds_the_same(norm: str) -> None:
    net = a_net()
    x, y = the_data(net)
    found = DeepFool(norm=norm).nearest(net, x, y)  # type: ignore[arg-type]
    size = THREATS[norm].size
    budget = float(size(found - x).median())
    for image, label, whole in zip(x, y, found, strict=True):
        alone = DeepFool(norm=norm).nearest(net, image[None], label[None])  # type: ignore[arg-type]
        torch.testing.assert_close(alone[0], whole, rtol=0, atol=1e-9)
    inside = DeepFool(norm=norm)(net, x, y, budget=budget)  # type: ignore[arg-type]
    assert (size(inside - x) <= budget * (1 + 1e-7)).all()
    near = size(found - x) <= budget
    torch.testing.assert_close(inside[near], found[near])


@pytest.mark.parametrize("classes", [2, 3, 6])
def test_few_classes_and_few_candidates_are_enough(classes: int) -> None:
    torch.manual_seed(2)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, classes))
    x = torch.rand(5, 3, 2, 2)
    with torch.no_grad():
        net[3].bias -= net(x).mean(0)  # makes the classes about equally likely
        y = net(x).argmax(1)
    for candidates in (1, 3, 10):
        samples = Samples(range(5))
        attack = replace(DeepFool(), candidates=candidates, steps=1)
        found = attack.nearest(net, x, y, samples=samples)
        looked_at = min(max(candidates, 2), classes) - 1
        assert samples.backwards.tolist() == [looked_at] * 5
        assert (distances(net, x, y, found, "l2") < inf).any()
