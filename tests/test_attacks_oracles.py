"""Attacks where the best perturbation is known in closed form, and the pieces they are made of."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf

import pytest
import torch
from torch import Tensor, nn

from robustbench_gpm.attacks import ATTACKS
from robustbench_gpm.attacks.ascent import Search, in_turn
from robustbench_gpm.attacks.fgsm import FGSM
from robustbench_gpm.attacks.flow import FlowPGD
from robustbench_gpm.attacks.geometry import project, random_point, steepest
from robustbench_gpm.attacks.pgd import PGD, as_given
from robustbench_gpm.attacks.smoothness import Neighbours, smoothness
from robustbench_gpm.attacks.stadv import StAdv
from robustbench_gpm.attacks.stadv_lbfgs import StAdvLBFGS
from robustbench_gpm.core import Samples, UserError
from robustbench_gpm.graded.evaluator import NeverEnough
from robustbench_gpm.losses import margin

BOTH_NEIGHBOURS: tuple[Neighbours, ...] = ("axial", "diagonal")


class Linear(nn.Module):
    """Two logits, their difference <weight, x> + bias; class 1 wherever that is positive."""

    def __init__(self, weight: Tensor, bias: float) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias

    def score(self, x: Tensor) -> Tensor:
        return (self.weight * x).flatten(1).sum(1) + self.bias

    def forward(self, x: Tensor) -> Tensor:
        score = self.score(x)
        return torch.stack((torch.zeros_like(score), score), dim=1)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.manual_seed(seed), dtype=torch.float64)


def linear(bias: float = 30.0) -> tuple[Linear, Tensor, Tensor]:
    """A linear model that no small budget fools, and images well inside (0,1)."""
    x = 0.5 + 0.1 * noise(5, 2, 6, 6, seed=1).clamp(-1, 1)
    model = Linear(0.2 * noise(2, 6, 6), bias)
    return model, x, torch.ones(5, dtype=torch.int64)


@pytest.mark.parametrize("attack", [FGSM(), PGD(), PGD(random_start=False, early_stop=False)])
def test_linf_reaches_the_corner(attack: FGSM | PGD) -> None:
    model, x, y = linear()
    fall = model.score(x) - model.score(attack(model, x, y, budget=0.1))
    torch.testing.assert_close(fall, (0.1 * model.weight.abs().sum()).expand(5))


@pytest.mark.parametrize("attack", [FGSM(), PGD()])
def test_linf_reaches_the_corner_of_the_ball_cut_by_the_unit_interval(attack: FGSM | PGD) -> None:
    model, x, y = linear()
    room = torch.where(model.weight > 0, x, 1 - x).clamp_max(0.45)
    best = (model.weight.abs() * room).flatten(1).sum(1)
    fall = model.score(x) - model.score(attack(model, x, y, budget=0.45))
    torch.testing.assert_close(fall, best)


def test_l2_reaches_the_far_side_of_the_sphere() -> None:
    model, x, y = linear()
    best = (0.5 * model.weight.norm()).expand(5)
    fast = model.score(x) - model.score(FGSM(norm="l2")(model, x, y, budget=0.5))
    torch.testing.assert_close(fast, best)
    straight = PGD(norm="l2", random_start=False)(model, x, y, budget=0.5)
    torch.testing.assert_close(model.score(x) - model.score(straight), best)
    random = model.score(x) - model.score(PGD(norm="l2")(model, x, y, budget=0.5))
    assert (random / best > 0.97).all()
    assert (random / best < 1 + 1e-9).all()


def ramp() -> tuple[Linear, Tensor, Tensor, Tensor]:
    """A ramp, a linear model blind to its edge, and the best flow of size 1 in closed form."""
    rows, columns = torch.arange(8.0).double()[:, None], torch.arange(8.0).double()
    x = (0.03 * columns - 0.05 * rows + 0.4).expand(3, 1, 8, 8).contiguous()
    weight = noise(1, 8, 8)
    weight[:, [0, -1], :] = 0
    weight[:, :, [0, -1]] = 0
    best = -torch.stack(((0.03 * weight).sign(), (-0.05 * weight).sign()), dim=1)
    return Linear(weight, 30.0), x, torch.ones(3, dtype=torch.int64), best


@pytest.mark.parametrize(
    "attack",
    [FlowPGD(), FlowPGD(random_start=True), StAdv(tau=0.0), StAdvLBFGS(tau=0.0)],
    ids=["rest", "random", "stadv", "stadv-lbfgs"],
)
def test_flows_on_a_ramp_reach_the_corner(attack: FlowPGD | StAdv | StAdvLBFGS) -> None:
    model, x, y, best = ramp()
    flow = attack.flow(model, x, y, budget=0.7)
    moving = (best != 0).expand_as(flow)
    torch.testing.assert_close(flow[moving], (0.7 * best).expand_as(flow)[moving])
    fall = model.score(x) - model.score(attack(model, x, y, budget=0.7))
    torch.testing.assert_close(fall, (0.7 * 0.08 * model.weight.abs().sum()).expand(3))


def test_padding_is_what_lies_beyond_the_edge() -> None:
    x = torch.full((1, 1, 6, 6), 0.8, dtype=torch.float64)
    y = torch.ones(1, dtype=torch.int64)
    bright = Linear(torch.ones(1, 6, 6, dtype=torch.float64), 0.0)
    assert torch.allclose(FlowPGD(steps=5)(bright, x, y, budget=1.0), x)
    dark = FlowPGD(padding="zeros", steps=5, step_size=0.25)(bright, x, y, budget=1.0)
    assert torch.allclose(dark[..., 1:-1, 1:-1], x[..., 1:-1, 1:-1])
    assert dark[..., 0, :].max() < 0.1


def wave() -> tuple[nn.Module, Tensor, Tensor]:
    """A small network and smooth images with the classes it gives them."""
    torch.manual_seed(4)
    net = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(384, 3)
    ).double()
    x = nn.functional.interpolate(noise(6, 1, 4, 4).sigmoid(), size=8, mode="bilinear")
    return net, x, net(x).argmax(1)


def test_lbfgs_unbounded_fools_and_moves_smoothly() -> None:
    net, x, y = wave()
    attack = StAdvLBFGS(tau=0.001, evaluations=40)
    flow = attack.flow(net, x, y, budget=inf)
    _, fooled = margin.judged(net, attack.render(x, flow), y)
    assert fooled.all()
    rough = FlowPGD().flow(net, x, y, budget=float(flow.abs().max()))
    assert (smoothness(flow, "diagonal") < 0.5 * smoothness(rough, "diagonal")).all()
    with pytest.raises(UserError, match="finite"):
        FlowPGD()(net, x, y, budget=inf)


def test_lbfgs_more_smoothness_costs_no_more_of_it() -> None:
    net, x, y = wave()
    loose, tight = (
        smoothness(StAdvLBFGS(tau=tau, evaluations=30).flow(net, x, y, budget=2.0), "diagonal")
        for tau in (1e-4, 1e-2)
    )
    assert loose.sum() > tight.sum()


def test_lbfgs_stays_at_rest_where_the_model_is_fooled_already() -> None:
    net, x, y = wave()
    samples = Samples(range(6))
    flow = StAdvLBFGS().flow(net, x, (y + 1) % 3, budget=1.0, samples=samples)
    assert torch.equal(flow, torch.zeros_like(flow))
    assert samples.forwards.tolist() == [1] * 6


@pytest.mark.parametrize("neighbours", BOTH_NEIGHBOURS)
def test_smoothness_agrees_with_its_definition(neighbours: Neighbours) -> None:
    flow = noise(2, 2, 4, 5)
    straight = [(0, 1), (0, -1), (1, 0), (-1, 0)]
    moves = straight if neighbours == "axial" else [(1, 1), (1, -1), (-1, 1), (-1, -1)]
    for i in range(2):
        total = 0.0
        for row in range(4):
            for column in range(5):
                for down, right in moves:
                    if 0 <= row + down < 4 and 0 <= column + right < 5:
                        apart = flow[i, :, row, column] - flow[i, :, row + down, column + right]
                        total += float((apart.square().sum() + 1e-8).sqrt())
        assert float(smoothness(flow, neighbours)[i]) == pytest.approx(total)


@pytest.mark.parametrize("neighbours", BOTH_NEIGHBOURS)
def test_a_translation_is_smooth_and_has_a_gradient(neighbours: Neighbours) -> None:
    flow = torch.full((1, 2, 5, 5), 0.3, dtype=torch.float64, requires_grad=True)
    value = smoothness(flow, neighbours)
    assert float(value.detach()) < 0.01
    (gradient,) = torch.autograd.grad(value.sum(), flow)
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_who_is_fooled_leaves_at_once() -> None:
    net, x, y = wave()
    samples = Samples(range(6))
    wrong = torch.tensor([True, False] * 3)
    attacked = PGD(random_start=False)(
        net, x, torch.where(wrong, (y + 1) % 3, y), budget=1e-4, samples=samples
    )
    assert samples.forwards.tolist() == [1, 20] * 3
    assert torch.equal(attacked[wrong], x[wrong])
    assert not torch.equal(attacked[~wrong], x[~wrong])


@dataclass(frozen=True)
class Above:
    """A loss that counts a sample as fooled where its mean is above one half."""

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return x.flatten(1).mean(1)

    def judged(self, model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return self(model, x, y), self(model, x, y) > 0.5


def test_a_search_that_fooled_is_never_given_up() -> None:
    outcomes = ([0.9, 0.1, 0.2], [0.6, 0.7, 0.3], [0.0, 0.0, 0.8], [0.0, 0.0, 0.0])
    searched = []

    def search(turn: int) -> object:
        def go(x: Tensor, y: Tensor, p: Tensor, samples: Samples) -> Tensor:
            searched.append(samples.index.tolist())
            return torch.tensor(outcomes[turn])[y].view(-1, 1, 1, 1).expand_as(x)

        return go

    x, y, samples = torch.zeros(3, 1, 2, 2), torch.arange(3), Samples([7, 8, 9])
    searches = [search(turn) for turn in range(4)]
    found = in_turn(searches, nn.Identity(), x, y, x, Above(), samples, render=as_given)
    assert searched == [[7, 8, 9], [8, 9], [9]]
    torch.testing.assert_close(found[:, 0, 0, 0], torch.tensor([0.9, 0.7, 0.8]))
    assert samples.forwards.tolist() == [1, 2, 3]


def test_where_nobody_is_fooled_the_highest_loss_is_kept() -> None:
    outcomes = ([0.9, 0.1, 0.2], [0.6, 0.7, 0.3], [0.0, 0.0, 0.8])

    def search(turn: int) -> Search:
        def go(x: Tensor, y: Tensor, p: Tensor, samples: Samples) -> Tensor:
            return torch.tensor(outcomes[turn])[y].view(-1, 1, 1, 1).expand_as(x)

        return go

    x, y, samples = torch.zeros(3, 1, 2, 2), torch.arange(3), Samples([7, 8, 9])
    searches = [search(turn) for turn in range(3)]
    loss = NeverEnough(Above())
    found = in_turn(searches, nn.Identity(), x, y, x, loss, samples, render=as_given)
    torch.testing.assert_close(found[:, 0, 0, 0], torch.tensor([0.9, 0.7, 0.8]))
    assert samples.forwards.tolist() == [3, 3, 3]


@pytest.mark.parametrize("name", ["pgd", "flow-pgd"])
def test_restarts_only_add(name: str) -> None:
    net, x, y = wave()
    attack = ATTACKS[name]
    budget = 0.03 if name == "pgd" else 0.3
    few, many = (
        margin.judged(net, replace(attack, restarts=n, steps=2)(net, x, y, budget=budget), y)[1]
        for n in (1, 6)
    )
    assert (many | ~few).all()
    assert many.sum() >= few.sum()


def test_l2_direction_survives_a_vanishing_gradient() -> None:
    gradient = 1e-30 * noise(3, 2, 4, 4).float()
    gradient[1] = 0
    gradient[2] *= 1e-10  # below the smallest normal number
    sizes = steepest(gradient, "l2").flatten(1).norm(dim=1)
    torch.testing.assert_close(sizes, torch.tensor([1.0, 0.0, 1.0]))
    huge = torch.full((1, 1, 2, 2), torch.finfo(torch.float32).max)
    torch.testing.assert_close(steepest(huge, "l2"), torch.full_like(huge, 0.5))


def test_projection_is_the_nearest_point() -> None:
    x = torch.full((1, 1, 1, 2), 0.5)
    far = torch.tensor([[[[0.8, 0.9]]]])
    torch.testing.assert_close(project(x, far, 0.25, "l2"), x + torch.tensor([0.15, 0.2]))
    torch.testing.assert_close(project(x, far, 0.35, "linf"), x + torch.tensor([0.3, 0.35]))
    torch.testing.assert_close(project(x, far, 0.6, "l2"), far)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_random_points_fill_the_ball(norm: str) -> None:
    x = torch.zeros(2000, 1, 1, 3, dtype=torch.float64)
    points = random_point(x, 2.0, norm, Samples(range(2000), seed=1)).flatten(1)
    # Uniform in the cube, the largest of three coordinates has a cube that is uniform in [0,1].
    shares = points.norm(dim=1) / 2 if norm == "l2" else (points.abs().amax(1) / 2) ** 3
    assert float(shares.max()) <= 1
    for quantile in (0.1, 0.5, 0.9):
        assert float(shares.quantile(quantile)) == pytest.approx(quantile, abs=0.03)
    assert points.mean(0).abs().max() < 0.08
