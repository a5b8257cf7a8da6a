"""Attacks on clips: closed forms on linear models, one change for all frames, flows alike."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise, product
from typing import Literal

import pytest
import torch
from attack_stage import a_net, assert_same_state, fooled, state_of, the_data, unsettle
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robustbench_gpm.attacks.base import Attack
from robustbench_gpm.attacks.flow import FlowPGD
from robustbench_gpm.attacks.pgd import PGD
from robustbench_gpm.attacks.temporal import FlowClipPGD, SharedPGD, parted, time_weights
from robustbench_gpm.core import Samples, UserError
from robustbench_gpm.deformation import warp
from robustbench_gpm.losses import margin

FRAMES, CHANNELS, SIDE = 3, 2, 6
SHAPE = (FRAMES * CHANNELS, SIDE, SIDE)
ALIKE = 1e9  # a smoothness that makes all frames move as one
Norm = Literal["linf", "l2"]
ENTRIES: dict[str, Attack] = {
    "shared": SharedPGD(FRAMES),
    "shared-l2": SharedPGD(FRAMES, norm="l2"),
    "flow": FlowClipPGD(frames=FRAMES),
    "flow-random": FlowClipPGD(frames=FRAMES, random_start=True, smoothness=0.0, restarts=2),
    "flow-halving": FlowClipPGD(frames=FRAMES, rule="halving", momentum=0.25),
}
every_entry = pytest.mark.parametrize("attack", ENTRIES.values(), ids=ENTRIES)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.manual_seed(seed))


class Reader(nn.Module):
    """Two logits, <weight, x> and a height out of reach: never fooled."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        read = (self.weight * x).flatten(1).sum(1)
        return torch.stack((read, torch.full_like(read, 1e3)), dim=1)


def clip_net(frames: int = FRAMES) -> nn.Module:
    """A small network on clips whose labels many budgets change."""
    torch.manual_seed(4)
    return nn.Sequential(
        nn.Conv2d(frames * CHANNELS, 12, 3, padding=1),
        nn.Tanh(),
        nn.Conv2d(12, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 16, 4),
    ).double()


def clip_data(net: nn.Module, count: int, frames: int = FRAMES) -> tuple[Tensor, Tensor]:
    coarse = torch.rand(
        count, frames * CHANNELS, 4, 4, dtype=torch.float64, generator=torch.manual_seed(2)
    )
    x = nn.functional.interpolate(coarse, size=8, mode="bilinear", align_corners=True)
    with torch.no_grad():
        return x, net(x).argmax(1)


def ones(x: Tensor) -> Tensor:
    return torch.ones(len(x), dtype=torch.int64)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_on_a_linear_model_the_shared_change_is_the_best_in_the_ball(norm: Norm) -> None:
    """Of a change d in every frame, <w, x> rises by <sum of w over the frames, d>."""
    weight = draw(*SHAPE)
    x = torch.full((1, *SHAPE), 0.5, dtype=torch.float64)
    budget = 0.1 if norm == "linf" else 0.7
    summed = parted(weight[None], FRAMES).sum(1)
    best = budget * (
        summed.sign() if norm == "linf" else summed / summed.norm() / math.sqrt(FRAMES)
    )
    attack = SharedPGD(FRAMES, norm=norm, steps=100, random_start=False)
    found = attack.find(Reader(weight), x, ones(x), loss=margin, budget=budget)
    change = parted(found.change, FRAMES)
    for frame in change.unbind(1):
        torch.testing.assert_close(frame, best, atol=1e-9, rtol=1e-6)
    torch.testing.assert_close(attack.size(found), torch.tensor([budget]).double())


def test_each_frame_is_clipped_by_itself() -> None:
    """Frames at 0, .5 and .9, and weights that together ask for more: what fits is added."""
    x = torch.tensor([0.0, 0.5, 0.9], dtype=torch.float64).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    weight = torch.tensor([3.0, -1.0, -1.0], dtype=torch.float64).view(3, 1, 1).expand(3, 2, 2)
    found = SharedPGD(3, random_start=False).find(
        Reader(weight), x, ones(x), loss=margin, budget=0.3
    )
    expected = torch.tensor([0.3, 0.8, 1.0], dtype=torch.float64).view(1, 3, 1, 1).expand_as(x)
    torch.testing.assert_close(found.images, expected)


@pytest.mark.parametrize(("level", "sign"), [(0.0, 1.0), (1.0, -1.0)])
def test_no_random_start_is_lost_where_all_frames_are_clipped(level: float, sign: float) -> None:
    weight = torch.full(SHAPE, sign, dtype=torch.float64)
    x = torch.full((2, *SHAPE), level, dtype=torch.float64)
    found = SharedPGD(FRAMES).find(Reader(weight), x, ones(x), loss=margin, budget=0.2)
    torch.testing.assert_close(found.change, torch.full_like(x, 0.2 * sign))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_of_one_frame_the_shared_attack_is_pgd(norm: Norm) -> None:
    net = a_net()
    x, y = the_data(net)
    budget = 0.05 if norm == "linf" else 0.3
    x = 0.2 + 0.6 * x  # away from where clipping comes before or after the gradient
    ours = SharedPGD(1, norm=norm, restarts=2)(net, x, y, budget=budget)
    theirs = PGD(norm=norm, restarts=2)(net, x, y, budget=budget)
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)
    assert fooled(net, ours, y).sum() > 0


@settings(max_examples=20, deadline=None)
@given(share=st.floats(0.05, 1.0), seed=st.integers(0, 99))
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_drawn_in_it_is_still_one_change_for_all_frames(
    norm: Norm, share: float, seed: int
) -> None:
    weight, x = draw(*SHAPE, seed=seed), draw(2, *SHAPE, seed=seed + 100).sigmoid()
    attack, budget = SharedPGD(FRAMES, norm=norm), 0.4 if norm == "linf" else 3.0
    found = attack.find(Reader(weight), x, ones(x), loss=margin, budget=budget)
    limits = torch.tensor([budget * share, budget], dtype=torch.float64)
    drawn = attack.drawn_in(x, found, limits)
    assert (attack.size(drawn) <= limits * (1 + 1e-9)).all()
    torch.testing.assert_close(drawn.images[1], found.images[1])
    change = parted(drawn.change, FRAMES)
    shared = change.gather(1, change.abs().argmax(1, keepdim=True))
    again = (parted(x, FRAMES) + shared).clamp(0, 1).flatten(1, 2)
    torch.testing.assert_close(drawn.images, again)


def ramps() -> tuple[Tensor, Tensor, Tensor]:
    """A clip of three different ramps, a weight of 0 at the edge, and what each move is worth."""
    rows, columns = torch.arange(SIDE).double()[:, None], torch.arange(SIDE).double()
    slopes = [(0.03, -0.05), (0.04, 0.02), (-0.06, 0.01)]
    x = torch.stack([0.5 + a * (columns - 2.5) + b * (rows - 2.5) for a, b in slopes])[None]
    weight = draw(3, SIDE, SIDE)
    weight[:, [0, -1], :] = 0
    weight[:, :, [0, -1]] = 0
    worth = torch.cat(
        [torch.stack((a * w, b * w)) for (a, b), w in zip(slopes, weight, strict=True)]
    )
    return x, weight, worth


def test_on_ramps_flows_go_each_their_own_way_or_all_the_same() -> None:
    x, weight, worth = ramps()
    model, inside = Reader(weight), worth != 0
    free = FlowClipPGD(frames=3, smoothness=0.0).flow(model, x, ones(x), loss=margin, budget=0.4)
    assert free.shape == (1, 6, SIDE, SIDE)
    torch.testing.assert_close(free[0][inside], (0.4 * worth.sign())[inside])
    alike = FlowClipPGD(frames=3, smoothness=ALIKE).flow(model, x, ones(x), loss=margin, budget=0.4)
    common = worth.view(3, 2, SIDE, SIDE).sum(0).sign().repeat(3, 1, 1)
    torch.testing.assert_close(alike[0][inside], (0.4 * common)[inside])


def test_a_smoothed_step_by_hand() -> None:
    """One step over two frames: signs asked for by the smoothed gradient, smoothed, scaled."""
    own = 1 / (1 + math.exp(-1 / (2 * 0.8**2)))
    weights = torch.tensor([[own, 1 - own], [1 - own, own]], dtype=torch.float64)
    torch.testing.assert_close(time_weights(2, 0.8), weights)
    gradient = torch.zeros(1, 4, 1, 2, dtype=torch.float64)
    gradient[0, 0, 0] = torch.tensor([1.0, 3.0])  # frame 0, to the right
    gradient[0, 2, 0] = torch.tensor([-0.9, 1.0])  # frame 1, to the right
    attack = FlowClipPGD(frames=2, smoothness=0.8)
    step = attack._along(gradient)
    # own = .686: frame 1 is asked for .686 * -.9 + .314 * 1 < 0, so its sign is -1.
    torch.testing.assert_close(step[0, 0, 0], torch.tensor([2 * own - 1, 1.0]).double())
    torch.testing.assert_close(step[0, 2, 0], torch.tensor([1 - 2 * own, 1.0]).double())
    assert not step[0, [1, 3]].any()
    wider = replace(attack, smoothness=3.0)._along(gradient)  # .514: the sum, .1, decides
    torch.testing.assert_close(wider[0, [0, 2], 0], torch.ones(2, 2).double())


def test_a_smoothed_step_is_the_steepest() -> None:
    """Of all smoothed sign patterns over five frames, it goes along the gradient the furthest."""
    weights, attack = time_weights(5, 1.2), FlowClipPGD(frames=5, smoothness=1.2)
    patterns = [weights @ torch.tensor(signs).double() for signs in product((-1, 1), repeat=5)]
    for seed in range(20):
        gradient = draw(1, 10, 1, 1, seed=seed)
        gradient[:, 1::2] = 0  # nothing to be had downwards
        along = gradient[0, ::2, 0, 0]
        best = max(patterns, key=lambda pattern, along=along: float(pattern @ along))
        step = attack._along(gradient)[0, ::2, 0, 0]
        torch.testing.assert_close(step, best / best.abs().max())


def test_time_weights() -> None:
    for smoothness in (0.0, 1e-200, 0.3, 2.0, ALIKE):
        weights = time_weights(5, smoothness)
        torch.testing.assert_close(weights.sum(1), torch.ones(5).double())
        assert (weights >= 0).all()
    assert torch.equal(time_weights(5, 0.0), torch.eye(5).double())
    assert torch.equal(time_weights(5, ALIKE), torch.full((5, 5), 0.2, dtype=torch.float64))
    ratios = time_weights(4, 2.0)[1] / time_weights(4, 2.0)[1, 1]
    expected = torch.tensor([math.exp(-1 / 8), 1.0, math.exp(-1 / 8), math.exp(-1 / 2)]).double()
    torch.testing.assert_close(ratios, expected)


def test_all_alike_is_the_shared_flow_and_free_flows_fool_more() -> None:
    net = clip_net()
    x, y = clip_data(net, 60)
    counts = []
    for budget in (0.2, 0.4):
        shared = FlowPGD()
        ours = FlowClipPGD(frames=FRAMES, smoothness=ALIKE)
        flow = ours.flow(net, x, y, budget=budget)
        expected = shared.flow(net, x, y, budget=budget).repeat(1, FRAMES, 1, 1)
        torch.testing.assert_close(flow, expected, atol=1e-9, rtol=0)
        torch.testing.assert_close(ours(net, x, y, budget=budget), shared(net, x, y, budget=budget))
        free = FlowClipPGD(frames=FRAMES, smoothness=0.0)(net, x, y, budget=budget)
        by_shared = fooled(net, warp(x, expected[:, :2]), y)
        by_free = fooled(net, free, y)
        assert (by_free | ~by_shared).all()
        counts += [int(by_shared.sum()), int(by_free.sum())]
    assert 0 < counts[0] < counts[1]


def test_the_smoother_the_more_alike_neighbouring_frames_move() -> None:
    net = clip_net()
    x, y = clip_data(net, 12)
    apart = []
    for smoothness in (0.0, 0.7, 1.5, 5.0, ALIKE):
        attack = FlowClipPGD(frames=FRAMES, smoothness=smoothness, early_stop=False)
        flow = parted(attack.flow(net, x, y, budget=0.5), FRAMES)
        torch.testing.assert_close(flow.abs().amax((1, 2, 3, 4)), torch.full((12,), 0.5).double())
        apart.append(float((flow[:, 1:] - flow[:, :-1]).abs().mean()))
    assert all(one > 1.2 * other for one, other in pairwise(apart[:-1]))
    assert apart[-1] < 1e-12


def test_of_one_frame_it_is_flow_pgd() -> None:
    net = a_net()
    x, y = the_data(net)
    for random in (False, True):
        ours = FlowClipPGD(smoothness=0.0)(net, x, y, budget=0.5)
        assert torch.equal(ours, FlowPGD()(net, x, y, budget=0.5))
        ours = FlowClipPGD(random_start=random, rule="fixed", momentum=0.2)
        assert (ours.size(ours.find(net, x, y, budget=0.5)) <= 0.5).all()


def test_each_frame_is_warped_by_its_own_flow() -> None:
    x, flow = draw(2, *SHAPE).sigmoid(), draw(2, 2 * FRAMES, SIDE, SIDE, seed=1)
    rendered = FlowClipPGD(frames=FRAMES).render(x, flow)
    for t in range(FRAMES):
        own = slice(CHANNELS * t, CHANNELS * (t + 1))
        torch.testing.assert_close(rendered[:, own], warp(x[:, own], flow[:, 2 * t : 2 * t + 2]))


@every_entry
@settings(max_examples=5, deadline=None)
@given(share=st.floats(0.0, 1.0))
def test_stays_inside_the_budget_and_the_unit_interval(attack: Attack, share: float) -> None:
    net = clip_net()
    x, y = clip_data(net, 4)
    x = (1.6 * x - 0.3).clamp(0, 1)  # a good part at the ends of the interval
    budget = share * {"linf": 0.5, "l2": 5.0, "flow": 2.0}[attack.threat.name]
    found = attack.find(net, x, y, budget=budget)
    assert (attack.size(found) <= budget * (1 + 1e-7) + 1e-12).all()
    assert found.images.min() >= 0
    assert found.images.max() <= 1
    smaller = attack.drawn_in(x, found, torch.full((4,), budget / 3).double())
    assert (attack.size(smaller) <= budget / 3 * (1 + 1e-7) + 1e-12).all()


@every_entry
def test_is_pure_and_each_sample_stands_alone(attack: Attack) -> None:
    net = a_net()
    x, y = the_data(net)
    attack = replace(attack, frames=2)
    unsettle(net)
    before, rng = state_of(net), torch.get_rng_state()
    budget = {"linf": 0.1, "l2": 1.0, "flow": 0.7}[attack.threat.name]
    index = torch.arange(100, 108)
    whole = attack(net, x, y, budget=budget, samples=Samples(index, seed=7))
    assert_same_state(before, state_of(net))
    assert torch.equal(rng, torch.get_rng_state())
    assert fooled(net, whole, y).any()
    part = attack(net, x[5:6], y[5:6], budget=budget, samples=Samples(index[5:6], seed=7))
    torch.testing.assert_close(part, whole[5:6], atol=1e-9, rtol=0)
    assert attack(net, x[:0], y[:0], budget=budget).shape == (0, *x.shape[1:])
    with pytest.raises(UserError, match="2 channels cannot be parted into 4 frames"):
        replace(attack, frames=4)(net, x, y, budget=budget)


def test_only_linf_flows() -> None:
    with pytest.raises(UserError, match="norm must be linf"):
        FlowClipPGD(norm="l2")
