"""Ascent on the parameters of deformations."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from attack_stage import COUNT, a_net, fooled, the_data
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robustbench_gpm.attacks.base import FlowAttack
from robustbench_gpm.attacks.elastic import Elastic
from robustbench_gpm.attacks.exhaustive import RotateTranslate, RotateTranslateRandom
from robustbench_gpm.attacks.parametric import (
    AffineAscent,
    FirstOrder,
    RigidAscent,
    Room,
    SplineAscent,
)
from robustbench_gpm.attacks.splines import ThinPlate
from robustbench_gpm.attacks.transforms import Affine, Family, Rigid
from robustbench_gpm.core import Samples, UserError
from robustbench_gpm.deformation import max_displacement
from robustbench_gpm.losses import cross_entropy

ASCENTS: list[FirstOrder] = [
    RigidAscent(steps=10),
    AffineAscent(steps=10),
    SplineAscent(steps=10, points=3),
]
ATTACKS: list[FlowAttack] = [*ASCENTS, Elastic()]
BUDGET = {"RigidAscent": 1.5, "AffineAscent": 0.8, "SplineAscent": 0.6, "Elastic": 1.5}


def named(attack: FlowAttack) -> str:
    return type(attack).__name__


every_ascent = pytest.mark.parametrize("attack", ASCENTS, ids=named)
every_attack = pytest.mark.parametrize("attack", ATTACKS, ids=named)


@pytest.fixture(scope="module")
def stage() -> tuple[nn.Module, Tensor, Tensor]:
    net = a_net()
    return net, *the_data(net)


def noise(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.manual_seed(seed)
    return 2 * torch.rand(*shape, generator=generator, dtype=torch.float64) - 1


@settings(max_examples=25, deadline=None)
@given(budget=st.floats(0, 5), spread=st.floats(0.01, 20), seed=st.integers(0, 99))
@pytest.mark.parametrize(
    "make", [lambda _: Rigid(), lambda _: Rigid(0.4, 130.0), Affine, lambda b: ThinPlate(3, b)]
)
def test_the_nearest_point_is_inside_box_and_budget(
    make: type[Affine], budget: float, spread: float, seed: int
) -> None:
    family: Family = make(budget)
    room = Room(family, budget, 7, 9)
    point = spread * noise(20, family.count, seed=seed)
    inside = room.nearest(point)
    flow = room.flow(inside)
    assert (max_displacement(flow) <= budget * (1 + 1e-9) + 1e-12).all()
    assert ((inside * room.unit).abs() <= 1 + 1e-9).all()
    torch.testing.assert_close(room.nearest(inside), inside, rtol=1e-9, atol=1e-12)
    if isinstance(family, Rigid):
        torch.testing.assert_close(
            family.flow(family.recovered(flow), 7, 9), flow, rtol=1e-9, atol=1e-12
        )


def test_each_parameter_counts_by_how_far_it_moves_the_image() -> None:
    room = Room(Rigid(0.1, 30.0), 0.5, 16, 16)
    alone = torch.eye(3, dtype=torch.float64) * 0.5
    torch.testing.assert_close(max_displacement(room.flow(alone)), torch.full((3,), 0.5).double())
    boxed = Room(Rigid(0.1, 30.0), 9.0, 16, 16)
    assert boxed.most[:2].tolist() == pytest.approx([1.6, 1.6])  # a tenth of 16, not 9


@every_ascent
def test_the_gradient_of_the_parameters_is_that_of_finite_differences(
    attack: FirstOrder, stage: tuple[nn.Module, Tensor, Tensor]
) -> None:
    net, x, y = stage
    room = Room(attack.family(1.0), 1.0, 8, 8)
    point = room.nearest(0.7 * noise(COUNT, room.family.count))
    net.eval()
    smooth = nn.Sequential(nn.Flatten(), nn.Linear(128, 4).double(), nn.Tanh())

    def losses(p: Tensor) -> Tensor:
        return cross_entropy(smooth, attack._shown(x, room.flow(p)), y)

    p = point.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(losses(p).sum(), p)
    net.train()
    with torch.no_grad():
        for j in range(p.shape[1]):
            step = torch.zeros_like(point)
            step[:, j] = 1e-6
            numeric = (losses(point + step) - losses(point - step)) / 2e-6
            torch.testing.assert_close(gradient[:, j], numeric, rtol=1e-4, atol=1e-7)


def test_ascent_fools_at_least_as_often_as_random_draws_and_nears_a_fine_grid(
    stage: tuple[nn.Module, Tensor, Tensor],
) -> None:
    net, x, y = stage
    for budget in (0.5, 1.0):
        box = {"translation": 0.1, "rotation": 15.0}
        fine = RotateTranslate(**box, translations=9, rotations=31)
        of_grid = fooled(net, fine(net, x, y, budget=budget), y)
        samples = Samples(range(COUNT))
        flow = RigidAscent(**box).flow(net, x, y, budget=budget, samples=samples)
        ours = fooled(net, RigidAscent().render(x, flow), y)
        by_chance = RotateTranslateRandom(**box)(net, x, y, budget=budget)
        assert ours.sum() >= fooled(net, by_chance, y).sum()
        assert ours.sum() >= of_grid.sum() - 1 >= 1
        assert (samples.forwards <= 42).all()
        family = Rigid(**box)
        parameters = family.recovered(flow)
        assert (parameters.abs() <= 1 + 1e-9).all()
        torch.testing.assert_close(family.flow(parameters, 8, 8), flow, rtol=1e-9, atol=1e-9)


class Ramp(nn.Module):
    """Class 1 while the mean of the right half less that of the left is above -`slack`."""

    def __init__(self, slack: float) -> None:
        super().__init__()
        self.slack = slack

    def forward(self, x: Tensor) -> Tensor:
        half = x.shape[3] // 2
        lead = x[..., half:].mean((1, 2, 3)) - x[..., :half].mean((1, 2, 3)) + self.slack
        return torch.stack((torch.zeros_like(lead), lead), dim=1)


def test_an_affine_map_finds_the_corner_that_a_linear_loss_asks_for() -> None:
    """On a ramp, moves to the left and right by the budget at the two edges are best: a squeeze."""
    side, budget = 8, 0.5
    x = (torch.arange(side).double() / 16 + 0.25).expand(1, 1, side, side)
    flow = AffineAscent(padding="border", steps=30).flow(
        Ramp(10.0), x, torch.tensor([1]), budget=budget
    )
    # The two halves' means come nearer where what is right is read from the left.
    inner = flow[0, 0, :, 1:-1]
    best = -budget * torch.linspace(-1, 1, side, dtype=torch.float64)[1:-1]
    torch.testing.assert_close(inner, best.expand_as(inner), rtol=0, atol=0.02)


@every_attack
def test_the_flow_is_of_its_kind_and_inside_the_budget(
    attack: FlowAttack, stage: tuple[nn.Module, Tensor, Tensor]
) -> None:
    net, x, y = stage
    budget = BUDGET[named(attack)]
    flow = attack.flow(net, x, y, budget=budget)
    hit = fooled(net, attack.render(x, flow), y)
    assert hit.sum() >= 2
    assert (max_displacement(flow) <= budget * (1 + 1e-9)).all()
    assert (max_displacement(flow) > 0).all()
    budgets = torch.linspace(0, 0.4, COUNT, dtype=torch.float64)
    small = attack.smaller(flow, budgets)
    assert (max_displacement(small) <= budgets + 1e-12).all()
    if isinstance(attack, RigidAscent):
        family = Rigid(attack.translation, attack.rotation)
        torch.testing.assert_close(family.flow(family.recovered(small), 8, 8), small)
    else:  # all of it by one factor
        share = budgets / max_displacement(flow)
        torch.testing.assert_close(small, flow * share[:, None, None, None].clamp_max(1))


@every_attack
def test_nobody_depends_on_the_batch_and_every_pass_is_booked(
    attack: FlowAttack, stage: tuple[nn.Module, Tensor, Tensor]
) -> None:
    net, x, y = stage
    seen = []
    handle = net.register_forward_hook(lambda _, __, logits: seen.append(len(logits)))
    samples = Samples(range(40, 40 + COUNT), seed=3)
    budget = 0.5 * BUDGET[named(attack)]
    whole = attack.flow(net, x, y, budget=budget, samples=samples)
    handle.remove()
    assert int(samples.forwards.sum()) == sum(seen)
    for rows in (slice(3, 4), slice(5, 8)):
        part = Samples(range(40, 40 + COUNT)[rows], seed=3)
        alone = attack.flow(net, x[rows], y[rows], budget=budget, samples=part)
        torch.testing.assert_close(alone, whole[rows], rtol=0, atol=1e-9)
        assert torch.equal(part.forwards, samples.forwards[rows])
        assert torch.equal(part.backwards, samples.backwards[rows])
    hit = fooled(net, attack.render(x, whole), y)
    assert (~hit).any()
    if isinstance(attack, FirstOrder):
        assert (samples.forwards[~hit] == 22).all()
        assert (samples.backwards[~hit] == 20).all()
    else:
        assert (samples.forwards[~hit] == 10).all()
        assert not samples.backwards.any()


@every_attack
def test_nothing_to_do(attack: FlowAttack, stage: tuple[nn.Module, Tensor, Tensor]) -> None:
    net, x, y = stage
    torch.testing.assert_close(attack(net, x, y, budget=0.0), x, rtol=0, atol=1e-15)
    assert attack.flow(net, x[:0], y[:0], budget=1.0).shape == (0, 2, 8, 8)
    budgets = attack.default_budgets(32, 32)
    assert len(budgets) == 6
    assert budgets[0] > 0.1
    with pytest.raises(UserError, match="finite budget"):
        attack(net, x, y, budget=float("inf"))


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(UserError, match="points must be at least 2"):
        SplineAscent(points=1)


@every_ascent
def test_further_runs_are_spent_on_those_left_standing_and_give_nobody_up(
    attack: FirstOrder, stage: tuple[nn.Module, Tensor, Tensor]
) -> None:
    net, x, y = stage
    budget = 0.6 * BUDGET[named(attack)]

    def attacked(restarts: int) -> tuple[Tensor, Tensor, Tensor]:
        samples = Samples(range(COUNT))
        few = replace(attack, steps=3, restarts=restarts)  # not enough to get to the top
        images = few(net, x, y, budget=budget, samples=samples)
        net.eval()
        with torch.no_grad():
            losses, hit = cross_entropy.judged(net, images, y)
        net.train()
        return hit, losses, samples.forwards

    (once, low, first), (often, high, more) = attacked(1), attacked(6)
    assert (high[~often] >= low[~often] - 1e-12).all()
    assert (often & ~once).any() or (high[~often] > low[~often] + 1e-6).any()
    assert (often | ~once).all()
    assert 1 <= once.sum() < COUNT
    assert torch.equal(first[once], more[once])
    assert (more[~once] > first[~once]).all()
