"""FAB: closed forms of linear models, torchattacks' distances, and what it spends."""

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

from robustbench_gpm.attacks.fab import FAB, TargetedFAB
from robustbench_gpm.attacks.hyperplane import dual_size, to_hyperplane
from robustbench_gpm.attacks.threats import THREATS
from robustbench_gpm.core import Samples

NORMS = ["linf", "l2", "l1"]
Walk = TargetedFAB | FAB
both = pytest.mark.parametrize("attack", [TargetedFAB(), FAB()], ids=["targeted", "untargeted"])
every_norm = pytest.mark.parametrize("norm", NORMS)


@both
@every_norm
def test_finds_the_nearest_point_of_a_linear_boundary(attack: Walk, norm: str) -> None:
    model, x, y = linear(bias=0.0)
    model.bias = 0.1 - float(model.score(x).min())
    near = model.score(x) < 0.2 if norm == "l1" else y > 0  # the box is out of the way
    x, y = x[near], y[near]
    found = replace(attack, norm=norm, steps=10).nearest(model, x, y)
    assert (model.score(found) < 0).all()
    closest = model.score(x) / dual_size(model.weight.flatten(), norm)
    ratio = THREATS[norm].size(found - x) / closest
    assert (ratio >= 1).all()
    assert (ratio <= 1.05 + 1e-9).all()


@every_norm
def test_finds_the_nearest_point_in_the_box(norm: str) -> None:
    torch.manual_seed(3)
    x = torch.rand(6, 1, 4, 4).double().round(decimals=1)
    model, y = Linear(noise(1, 4, 4), 0.0), torch.ones(6, dtype=torch.int64)
    model.bias = -float(model.score(x).min()) + 1.0
    most = (model.weight.abs() * torch.where(model.weight > 0, x, 1 - x)).flatten(1).sum(1)
    assert (most > 1.1 * model.score(x)).sum() >= 4
    reach = most > 1.1 * model.score(x)
    x, y = x[reach], y[reach]
    found = TargetedFAB(norm=norm, steps=30).nearest(model, x, y)
    weight = model.weight.expand_as(x)
    best = THREATS[norm].size(to_hyperplane(x, weight, -model.score(x), norm))
    assert (THREATS[norm].size(found - x) <= 1.05 * best).all()


@pytest.mark.parametrize("alpha_max", [0.0, 0.1, 0.9])
def test_a_step_mixes_the_nearest_points_seen_from_here_and_from_the_image(
    alpha_max: float,
) -> None:
    attack = TargetedFAB(norm="l2", alpha_max=alpha_max, eta=1.2, beta=0.7)
    x = torch.full((2, 1, 3, 3), 0.5).double()
    at, normal = x + 0.05 * noise(2, 1, 3, 3), noise(2, 1, 3, 3, seed=1)
    margin, fooled = torch.tensor([0.1, -0.1]).double(), torch.tensor([True, False])
    stepped = attack._step(x, at, fooled, margin[:, None], normal[:, None])
    for i, here in enumerate((x[0] + 0.7 * (at[0] - x[0]), at[1])):
        w = normal[i]
        points, lengths = [], []
        for z in (here, x[i]):
            d = -(margin[i] + (w * (z - at[i])).sum()) * w / w.square().sum()
            points.append(z + 1.2 * d)
            lengths.append(d.norm())
        share = min(float(lengths[0] / (lengths[0] + lengths[1])), alpha_max)
        torch.testing.assert_close(stepped[i], (1 - share) * points[0] + share * points[1])


def test_a_step_stays_finite_where_the_gradient_is_huge() -> None:
    x = torch.full((1, 1, 3, 3), 0.5)
    at, huge = x + 0.1 * noise(1, 1, 3, 3).float(), torch.full((1, 2, 1, 3, 3), 3e38)
    huge[:, :, :, 1] *= -1
    for norm in NORMS:
        attack = FAB(norm=norm)  # type: ignore[arg-type]
        stepped = attack._step(x, at, torch.tensor([True]), torch.full((1, 2), -1e38), huge)
        assert stepped.isfinite().all()


def by_torchattacks(net: nn.Module, x: Tensor, y: Tensor, norm: str, targeted: bool) -> Tensor:
    """Distances (B,) of their nearest images over nine targets, or of their untargeted ones."""
    theirs = torchattacks.FAB(
        net, norm=norm.capitalize(), eps=1e9, steps=10, multi_targeted=targeted, n_classes=10
    )
    nearest = torch.full((len(x),), inf)
    for target in range(2, 11) if targeted else [0]:
        theirs.target_class = target
        run = theirs.attack_single_run_targeted if targeted else theirs.attack_single_run
        nearest = torch.minimum(nearest, distances(net, x, y, run(x, y).detach(), norm))
    return nearest


def distances(net: nn.Module, x: Tensor, y: Tensor, images: Tensor, norm: str) -> Tensor:
    with torch.no_grad():
        fooled = net(images).argmax(1) != y
    return torch.where(fooled, THREATS[norm].size(images - x), inf)


@both
@every_norm
def test_is_no_softer_than_torchattacks_at_half_the_forward_passes(
    attack: Walk, norm: str, digits: tuple[nn.Module, Tensor, Tensor]
) -> None:
    net, x, y = digits[0].float(), digits[1][:48].float(), digits[2][:48]
    samples = Samples(range(48))
    attack = replace(attack, norm=norm, steps=10)
    ours = distances(net, x, y, attack.nearest(net, x, y, samples=samples), norm)
    targeted = isinstance(attack, TargetedFAB)
    theirs = by_torchattacks(net, x, y, norm, targeted)
    net.double()
    assert (ours < inf).all()
    assert (ours <= 1.03 * theirs).double().mean() >= 0.95
    assert ours.mean() <= 1.005 * theirs.mean()
    assert int(samples.forwards.max()) == (9 * 11 + 1 if targeted else 12)


@both
def test_more_steps_and_more_targets_come_nearer(
    attack: Walk, digits: tuple[nn.Module, Tensor, Tensor]
) -> None:
    net, x, y = digits[0], digits[1][:12], digits[2][:12]
    attack = replace(attack, norm="linf", steps=2)
    if isinstance(attack, TargetedFAB):
        attack = replace(attack, targets=1)
    more = [replace(attack, steps=30)]
    if isinstance(attack, TargetedFAB):
        more.append(replace(attack, targets=3))
    first = distances(net, x, y, attack.nearest(net, x, y), "linf")
    for stronger in more:
        other = distances(net, x, y, stronger.nearest(net, x, y), "linf")
        assert (other <= first + 1e-9).all()
        assert (other < first).any()


@every_norm
def test_restarts_start_at_half_the_distance_known(norm: str) -> None:
    x, size = torch.full((3, 1, 4, 4), 0.5).double(), THREATS[norm].size
    attack = TargetedFAB(norm=norm)  # type: ignore[arg-type]
    distance = torch.tensor([0.1, 0.3, inf]).double()

    def starts(seed: int, budget: float) -> Tensor:
        return attack._elsewhere(x, distance, budget, Samples(range(3), seed))

    torch.testing.assert_close(size(starts(1, inf) - x)[:2], distance[:2] / 2)
    torch.testing.assert_close(size(starts(1, 0.2) - x), torch.tensor([0.05, 0.1, 0.1]).double())
    assert starts(1, inf)[2].isfinite().all()
    assert torch.equal(starts(1, 0.2), starts(1, 0.2))
    assert not (starts(1, 0.2) == starts(2, 0.2)).any()


class Hidden(nn.Module):
    """Two classes, the second without a gradient wherever the mean is below 0.6."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = (x.flatten(1).mean(1) - 0.6).relu()
        return torch.stack((torch.full_like(hidden, 0.05), hidden), 1)


@both
def test_restarts_find_what_the_clean_image_has_no_gradient_to(attack: Walk) -> None:
    x, y = torch.full((4, 1, 1, 2), 0.5).double(), torch.zeros(4).long()
    once, often = Samples(range(4)), Samples(range(4))
    attack = replace(attack, steps=10)
    assert torch.equal(attack.nearest(Hidden(), x, y, samples=once), x)
    found = replace(attack, restarts=20).nearest(Hidden(), x, y, samples=often)
    assert (distances(Hidden(), x, y, found, "linf") < 0.25).all()
    assert often.forwards.tolist() == [1 + 20 * 11] * 4
    assert once.forwards.tolist() == [12] * 4


@both
def test_who_is_inside_the_budget_leaves(attack: Walk) -> None:
    net = a_net()
    x, y = the_data(net)
    y = torch.where(torch.arange(len(y)) == 0, (y + 1) % 4, y)  # the first is fooled already
    attack = replace(attack, norm="linf", steps=8)
    found = attack.nearest(net, x, y)
    distance = THREATS["linf"].size(found - x)
    assert torch.equal(found[0], x[0])
    budget = float(distance[1:].median()) * 1.2
    spent = {}
    for early in (True, False):
        samples = Samples(range(len(x)))
        images = replace(attack, early_stop=early)(net, x, y, budget=budget, samples=samples)
        net.eval()
        inside = distances(net, x, y, images, "linf") <= budget * (1 + 1e-9)
        assert torch.equal(inside, distance <= budget)
        assert samples.forwards[0] == 1
        spent[early] = samples.forwards
    assert (spent[False][1:] == spent[False].max()).all()
    assert (spent[True] < spent[False])[1:].sum() >= 3
    beyond = distance > budget
    assert torch.equal(spent[True][beyond], spent[False][beyond])
    unbounded = Samples(range(len(x)))
    attack.nearest(net, x, y, samples=unbounded)
    assert torch.equal(unbounded.forwards, spent[False])


@both
@pytest.mark.parametrize("classes", [2, 3])
def test_few_classes_are_enough(attack: Walk, classes: int) -> None:
    torch.manual_seed(2)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, classes))
    x = torch.rand(5, 3, 2, 2)
    with torch.no_grad():
        net[3].bias -= net(x).mean(0)  # makes the classes about equally likely
        y = net(x).argmax(1)
    samples = Samples(range(5))
    with passes_counted(net) as counted:
        found = replace(attack, norm="l2", steps=20).nearest(net, x, y, samples=samples)
    assert (distances(net, x, y, found, "l2") < inf).sum() >= 3
    assert int(samples.forwards.sum()) == counted["forwards"]
    assert int(samples.backwards.sum()) == counted["backwards"] == 5 * 20 * (classes - 1)
    alone = replace(attack, norm="l2", steps=20).nearest(net, x[3:4], y[3:4], samples=Samples([3]))
    torch.testing.assert_close(alone, found[3:4], rtol=0, atol=1e-5)


@both
def test_the_candidates_or_targets_are_the_likeliest(attack: Walk) -> None:
    weight = torch.eye(6).double()

    def model(x: Tensor) -> Tensor:
        return x.flatten(1) @ weight

    net = nn.Module()
    net.forward = model  # type: ignore[method-assign]
    x = torch.tensor([0.9, 0.1, 0.2, 0.3, 0.8, 0.4]).double().view(1, 1, 2, 3)
    limit = {"targets": 2} if isinstance(attack, TargetedFAB) else {"candidates": 3}
    samples = Samples([0])
    few = replace(attack, norm="l2", steps=4, **limit)
    found = few.nearest(net, x, torch.tensor([0]), samples=samples)
    assert int(net(found).argmax(1)) == 4
    assert int(samples.backwards[0]) == 8
