"""ADef beside closed forms, least squares and linear programs, and what it owes its caller."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

import numpy as np
import pytest
import torch
from attack_stage import a_net, fooled, the_data
from scipy.optimize import linprog
from test_attacks_minimum_norm import small
from test_attacks_oracles import Linear, noise
from test_attacks_parity import digits as digits  # noqa: PLC0414 - a fixture
from test_attacks_smoothing import filtered
from test_attacks_table import Treacherous, passes_counted
from torch import Tensor, nn

from robustbench_gpm.attacks.adef import ADef, _Walk
from robustbench_gpm.attacks.smoothness import smoothness
from robustbench_gpm.core import Samples, UserError
from robustbench_gpm.deformation import max_displacement, warp
from robustbench_gpm.losses import LogitLoss, margin_of

Norm = Literal["l2", "linf"]
NORMS: tuple[Norm, ...] = get_args(Norm)
SIGMAS = (0.0, 0.5, 1.3)
SIDE = 12
every_norm = pytest.mark.parametrize("norm", NORMS)
every_sigma = pytest.mark.parametrize("sigma", SIGMAS)


def ramp() -> tuple[Linear, Tensor, Tensor]:
    """A linear model of images that are planes, each channel its own, blind near their edges.

    Its score is linear in a flow that does not lead out of the image.
    """
    place = torch.arange(SIDE, dtype=torch.float64)
    first = 0.2 + 0.03 * place + 0.01 * place[:, None]
    second = 0.7 - 0.02 * place + 0.02 * place[:, None]
    x = torch.stack((first, second))[None]
    weight = torch.zeros(2, SIDE, SIDE, dtype=torch.float64)
    weight[:, 4:8, 4:8] = 2 + noise(2, 4, 4)
    model = Linear(weight, 0.0)
    model.bias = 0.4 - float(model.score(x))
    return model, x, torch.ones(1, dtype=torch.int64)


def jacobian(model: Linear, x: Tensor) -> np.ndarray:
    """How the score rises with each displacement: exact, since it is linear in them."""
    flows = 0.5 * torch.eye(2 * SIDE * SIDE, dtype=torch.float64).view(-1, 2, SIDE, SIDE)
    rises = model.score(warp(x.expand(len(flows), -1, -1, -1), flows)) - model.score(x)
    return np.asarray(rises / 0.5)


def as_found(norm: Norm, sigma: float) -> ADef:
    """One whole step, gone back on to the boundary."""
    attack = ADef(norm=norm, sigma=sigma, steps=1, rounds=1, stride=100.0)
    return replace(attack, overshoot=0.5, halvings=30)


def smoothing_matrix(sigma: float) -> np.ndarray:
    count = 2 * SIDE * SIDE
    return filtered(np.eye(count).reshape(count, 2, SIDE, SIDE), sigma).reshape(count, count).T


@every_sigma
def test_finds_the_smoothed_least_squares_flow_of_a_linear_model(sigma: float) -> None:
    model, x, y = ramp()
    found = as_found("l2", sigma).flow(model, x, y, budget=np.inf)
    slope = torch.from_numpy(jacobian(model, x)).view(2, SIDE, SIDE)
    once = torch.from_numpy(filtered(slope.numpy(), sigma))
    twice = torch.from_numpy(filtered(once.numpy(), sigma))
    expected = -0.4 * twice / once.square().sum()
    torch.testing.assert_close(found[0], expected, rtol=1e-6, atol=1e-8)
    assert 0.1 < max_displacement(found) < 4
    smooth = smoothing_matrix(sigma)
    solved = np.linalg.lstsq(jacobian(model, x)[None] @ smooth, np.array([-0.4]), rcond=None)[0]
    torch.testing.assert_close(found.flatten().numpy(), smooth @ solved, rtol=1e-6, atol=1e-8)


@every_sigma
def test_finds_the_flow_of_the_least_largest_unsmoothed_move(sigma: float) -> None:
    model, x, y = ramp()
    found = as_found("linf", sigma).flow(model, x, y, budget=np.inf)
    smooth = smoothing_matrix(sigma)
    slope = jacobian(model, x) @ smooth
    slope[np.abs(slope) < 1e-12] = 0  # pixels that nothing is seen of
    count = len(slope)
    bounds = np.block(
        [[np.eye(count), -np.ones((count, 1))], [-np.eye(count), -np.ones((count, 1))]]
    )
    program = linprog(
        np.append(np.zeros(count), 1.0),
        A_ub=bounds,
        b_ub=np.zeros(2 * count),
        A_eq=np.append(slope, 0.0)[None],
        b_eq=[-0.4],
        bounds=(None, None),
    )
    expected = smooth @ (-program.fun * np.sign(slope))
    torch.testing.assert_close(found.flatten().numpy(), expected, rtol=1e-6, atol=1e-8)


@every_norm
@every_sigma
def test_a_pulled_step_leads_half_way_from_the_boundary_to_the_smallest_flow(
    norm: Norm, sigma: float
) -> None:
    model, x, y = ramp()
    smallest = as_found(norm, sigma).flow(model, x, y, budget=np.inf)
    rows, targets = torch.zeros(1, dtype=torch.int64), torch.zeros(1, 1, dtype=torch.int64)
    far = 1.9 * noise(1, 2, SIDE, SIDE).clamp(-1, 1)
    far *= -(model.score(warp(x, far)) - 0.4).sign()
    ahead = model.score(warp(x, far))
    assert ahead < -0.05  # fools
    walk = _Walk(rows, x, y, targets, far, Samples(rows))
    for overshoot in (0.0, 0.1):
        attack = ADef(norm=norm, sigma=sigma, stride=100.0, overshoot=overshoot)
        ends = [replace(attack, pull=p)._step(model, walk, pulled=True) for p in (0.0, 0.5, 1.0)]
        expected = (1 + overshoot) * smallest
        torch.testing.assert_close(ends[2], expected, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(ends[1], (ends[0] + ends[2]) / 2)
    torch.testing.assert_close(model.score(warp(x, ends[0])), -0.1 * ahead)


@every_norm
def test_halvings_alone_take_back_what_a_step_went_too_far(norm: Norm) -> None:
    model, x, y = ramp()
    best = max_displacement(as_found(norm, 0.5).flow(model, x, y, budget=np.inf))
    attack = replace(as_found(norm, 0.5), overshoot=0.6)
    for halvings, slack in ((2, 0.25), (8, 1 / 256)):
        flow = replace(attack, halvings=halvings).flow(model, x, y, budget=np.inf)
        ratio = max_displacement(flow) / best
        assert 1 - 1e-6 < ratio <= 1 + 1.6 * slack
        assert (model.score(warp(x, flow)) < 0).all()


@every_norm
def test_long_steps_are_cut_and_get_there_all_the_same(norm: Norm) -> None:
    model, x, y = ramp()
    whole = as_found(norm, 0.5)
    best = whole.flow(model, x, y, budget=np.inf)
    stride = float(max_displacement(best)) / 2.5
    for steps, arrives in ((2, False), (3, True)):
        attack = replace(whole, overshoot=0.0, stride=stride, steps=steps)
        flow = attack.flow(model, x, y, budget=np.inf)
        assert bool(flow.any()) == arrives
    attack = replace(whole, overshoot=0.02, stride=stride, steps=3)
    torch.testing.assert_close(attack.flow(model, x, y, budget=np.inf), best, rtol=1e-6, atol=1e-8)


class Ellipse(nn.Module):
    """Fooled outside of an ellipse in the values of two pixels, about a point near `plane`'s."""

    def forward(self, x: Tensor) -> Tensor:
        one, other = x[:, 0, 3, 3] - 0.31, x[:, 0, 3, 6] - 0.495
        rise = 1 - (one / 0.1).square() - (other / 0.05).square()
        return torch.stack((torch.zeros_like(rise), rise), dim=1)


def plane() -> tuple[Tensor, Tensor]:
    """An image that rises by 0.05 a pixel to the right, and its class."""
    x = (0.2 + 0.05 * torch.arange(9.0, dtype=torch.float64)).expand(1, 1, 7, 9)
    return x.contiguous(), torch.ones(1, dtype=torch.int64)


def least_move() -> float:
    """The least largest displacement that leads out of the ellipse."""
    turn = torch.linspace(0, 2 * np.pi, 200001, dtype=torch.float64)
    moves = torch.stack((0.1 * turn.cos() - 0.04, 0.05 * turn.sin() - 0.005)) / 0.05
    return float(moves.abs().amax(0).min())


def test_comes_to_the_least_displacement_over_a_curved_boundary() -> None:
    attack = ADef(norm="linf", sigma=0.0, rounds=1, halvings=20)
    flow = attack.flow(Ellipse(), *plane(), budget=np.inf)
    assert float(max_displacement(flow)) == pytest.approx(least_move(), rel=1e-4)


def test_further_rounds_come_nearer() -> None:
    attack = ADef(sigma=0.0, halvings=20)
    sizes = []
    for rounds in (1, 2, 3):
        flow = replace(attack, rounds=rounds).flow(Ellipse(), *plane(), budget=np.inf)
        assert int(Ellipse()(warp(plane()[0], flow)).argmax(1)) == 0
        sizes.append(float(max_displacement(flow)))
    assert least_move() * (1 - 1e-4) < sizes[2] < 0.8 * sizes[0]
    assert sizes[2] < sizes[1] < sizes[0]


@every_norm
def test_fools_digits_by_small_flows_that_more_targets_make_no_larger(
    norm: Norm, digits: tuple[nn.Module, Tensor, Tensor]
) -> None:
    net, x, y = digits[0], digits[1][:40], digits[2][:40]
    sizes = []
    for targets in (1, 3, 9):
        attack = ADef(norm=norm, targets=targets, rounds=2)
        flow = attack.flow(net, x, y, budget=np.inf)
        size = max_displacement(flow)
        missed = ~fooled(net, attack.render(x, flow), y)
        assert not flow[missed].any()
        sizes.append(size.masked_fill(missed, torch.inf))
    assert sizes[0].isfinite().sum() >= 38
    assert sizes[2].isfinite().all()
    assert (sizes[1] <= sizes[0]).all()
    assert (sizes[2] <= sizes[1]).all()
    assert (sizes[2] < sizes[0]).any()
    assert 0.1 < sizes[1].median() < {"l2": 0.45, "linf": 0.3}[norm]


@every_norm
def test_flows_are_the_smoother_the_larger_sigma(
    norm: Norm, digits: tuple[nn.Module, Tensor, Tensor]
) -> None:
    net, x, y = digits[0], digits[1][:16], digits[2][:16]
    rough, sizes = [], []
    for sigma in (0.0, 0.7, 1.5):
        flow = ADef(norm=norm, sigma=sigma, rounds=2).flow(net, x, y, budget=np.inf)
        sizes.append(max_displacement(flow).median())
        rough.append((smoothness(flow, "axial") / max_displacement(flow)).nanmedian())
    assert rough[0] > 1.1 * rough[1] > 1.2 * rough[2]
    assert sizes[0] < sizes[1] < sizes[2]


def test_the_nearest_flow_is_what_a_budget_leaves_and_is_not_cut_by_clamping() -> None:
    net = a_net()
    x, y = the_data(net)
    attack = ADef()
    flow = attack.find(net, x, y, budget=np.inf).flow
    size = max_displacement(flow)
    assert fooled(net, warp(x, flow), y).all()
    budget = float(size.median())
    inside = attack.flow(net, x, y, budget=budget)
    assert (max_displacement(inside) <= budget * (1 + 1e-7)).all()
    near = size <= budget
    assert fooled(net, warp(x, inside), y)[near].all()
    small = attack.smaller(flow, 0.5 * size)
    torch.testing.assert_close(small, 0.5 * flow)
    assert torch.equal(attack.smaller(flow, np.inf), flow)


def test_who_is_out_of_reach_costs_little_and_keeps_still() -> None:
    net = a_net()
    x, y = the_data(net)
    near, far = Samples(range(len(x))), Samples(range(len(x)))
    found = ADef().find(net, x, y, budget=1e-3, samples=near).flow
    assert not found.any()
    # At rest twice; to each of three classes a step, a look, and where it fools one less far.
    assert (near.forwards <= 2 + 3 * 3).all()
    assert near.backwards.tolist() == [3] * len(x)
    ADef().find(net, x, y, budget=np.inf, samples=far)
    assert (far.forwards > near.forwards).all()
    nothing = Samples(range(len(x)))
    assert not ADef().flow(net, x, y, budget=0.0, samples=nothing).any()
    assert nothing.forwards.tolist() == [1] * len(x)


@every_norm
def test_the_book_holds_every_pass_and_spares_who_is_done(norm: Norm) -> None:
    net = a_net()
    x, y = the_data(net)
    y = torch.where(torch.arange(len(y)) == 2, (y + 1) % 4, y)  # fooled at rest
    samples = Samples(range(len(x)))
    with passes_counted(net) as counted:
        found = ADef(norm=norm).find(net, x, y, budget=np.inf, samples=samples).flow
    assert int(samples.forwards.sum()) == counted["forwards"]
    assert int(samples.backwards.sum()) == counted["backwards"]
    assert (int(samples.forwards[2]), int(samples.backwards[2])) == (1, 0)
    assert not found[2].any()
    assert len(samples.backwards.unique()) > 2


@every_norm
def test_the_batch_and_the_order_do_not_matter(norm: Norm) -> None:
    net = a_net()
    x, y = the_data(net)
    attack = ADef(norm=norm)
    for budget in (np.inf, 0.3):
        whole = attack.find(net, x, y, budget=budget).flow
        assert whole.any()
        order = torch.randperm(len(x), generator=torch.manual_seed(3))
        for chunk in (order[:5], *order[5:].split(1)):
            part = attack.find(net, x[chunk], y[chunk], budget=budget).flow
            torch.testing.assert_close(part, whole[chunk], rtol=0, atol=1e-9)


@pytest.mark.parametrize("classes", [1, 2, 3])
def test_few_classes_and_few_targets_are_enough(classes: int) -> None:
    net, x = small(classes), torch.rand(5, 1, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        net[-1].bias -= net(x).mean(0)  # type: ignore[index]
        y = net(x).argmax(1)
    for targets in (1, 2, 12):
        samples = Samples(range(5))
        attack = ADef(targets=targets, steps=1, rounds=1)
        flow = attack.find(net, x, y, budget=np.inf, samples=samples).flow
        assert samples.backwards.max() == min(targets, classes - 1)
        assert bool(flow.any()) == (classes > 1)


def test_the_loss_says_who_is_fooled() -> None:
    class Demanding(LogitLoss):
        def judged(self, model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            losses = self(model, x, y)
            return losses, losses.detach() > 0.05

    net = a_net()
    x, y = the_data(net)
    loss = Demanding("demanding", margin_of)
    flow = ADef().find(net, x, y, budget=np.inf, loss=loss).flow
    found = flow.flatten(1).any(1)
    assert found.sum() >= 6
    with torch.no_grad():
        assert (margin_of(net.eval()(warp(x, flow)), y)[found] > 0.05).all()


def test_odd_gradients_ties_and_empty_batches_are_no_trouble() -> None:
    net = a_net()
    x, y = the_data(net)
    flow = ADef().flow(Treacherous(net), x, y, budget=2.0)
    assert torch.isfinite(flow).all()
    assert fooled(net, warp(x, flow), y).sum() >= 4
    assert ADef().flow(net, x[:0], y[:0], budget=1.0).shape == (0, 2, 8, 8)
    model, planes, label = ramp()
    model.bias = -float((model.weight * planes).sum())  # a tie: class 0 is given
    assert not ADef().flow(model, planes, label, budget=1.0).any()
    tied = ADef().flow(model, planes, torch.zeros(1, dtype=torch.int64), budget=1.0)
    assert 0 < float(max_displacement(tied)) < 1e-3
    flat, samples = torch.full_like(x, 0.5), Samples(range(len(x)))
    still = ADef().flow(net, flat, net.eval()(flat).argmax(1), budget=1.0, samples=samples)
    assert not still.any()
    assert samples.backwards.tolist() == [3] * len(x)  # no slope, no second step
    assert ADef().find(net.float(), x.float(), y, budget=1.0).flow.dtype == torch.float32


def test_hyper_parameters_are_checked() -> None:
    for wrong in ({"norm": "l1"}, {"targets": 0}, {"sigma": -1.0}, {"pull": np.inf}):
        with pytest.raises(UserError, match="must be"):
            ADef(**wrong)  # type: ignore[arg-type]
