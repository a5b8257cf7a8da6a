"""Ascent on flows: closed-form optima, the paper's own loop, and every option's effect."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import pytest
import torch
from attack_stage import a_net, fooled, the_data
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import Tensor, nn

from robustbench_gpm.attacks.base import attacking
from robustbench_gpm.attacks.flow import FlowPGD
from robustbench_gpm.attacks.flow_apgd import FlowAPGD
from robustbench_gpm.checkpoint import load
from robustbench_gpm.core import Samples, UserError
from robustbench_gpm.deformation import identity_flow, to_pixels, warp
from robustbench_gpm.losses import cross_entropy, margin

PGD, APGD, FGR = FlowPGD(), FlowAPGD(), FlowPGD(steps=100, step_size=0.01, rule="fixed")
L2 = {"pgd-l2": FlowPGD(norm="l2"), "apgd-l2": FlowAPGD(norm="l2")}
ENTRIES = {"pgd": PGD, "apgd": APGD, "fgr": FGR, **L2}
Entry = FlowPGD | FlowAPGD
Norm = Literal["linf", "l2"]
Rule = Literal["fixed", "falling", "halving"]
every_entry = pytest.mark.parametrize("attack", ENTRIES.values(), ids=ENTRIES)

SIDE, COUNT = 10, 120
Render = Callable[[Tensor, Tensor], Tensor]
Pair = tuple[Tensor, Tensor]
Digits = tuple[nn.Module, Tensor, Tensor]


class Reader(nn.Module):
    """Two logits, 0 and bias - <weight, x>; class 1 wherever the latter is positive."""

    def __init__(self, weight: Tensor, bias: float) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        read = (self.weight * x).flatten(1).sum(1)
        self.seen.append(read.detach())
        score = self.bias - read
        return torch.stack((torch.zeros_like(score), score), dim=1)


def one_pixel(image: dict[tuple[int, int], float], bias: float) -> tuple[Reader, Tensor, Tensor]:
    """A network that reads the pixel at row 3, column 3 of a dark image with a few bright pixels.

    It is fooled where that pixel becomes brighter than `bias`.
    """
    x = torch.full((1, 1, 6, 6), 0.2, dtype=torch.float64)
    for (row, column), value in image.items():
        x[..., row, column] = value
    weight = torch.zeros(1, 6, 6, dtype=torch.float64)
    weight[0, 3, 3] = 1
    return Reader(weight, bias), x, torch.ones(1, dtype=torch.int64)


def ramp() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A ramp and its label, a weight (1,H,W) of 0 at the edge, and what a pixel's move is worth."""
    rows, columns = torch.arange(SIDE).double()[:, None], torch.arange(SIDE).double()
    x = (0.03 * columns - 0.05 * rows + 0.5)[None, None]
    weight = torch.randn(1, SIDE, SIDE, generator=torch.manual_seed(0), dtype=torch.float64)
    weight[:, [0, -1], :] = 0
    weight[:, :, [0, -1]] = 0
    return x, torch.ones(1, dtype=torch.int64), weight, torch.cat((0.03 * weight, -0.05 * weight))


@every_entry
def test_on_a_ramp_the_flow_is_the_best_in_the_ball(attack: Entry) -> None:
    """What a linear model blind to the edge of a ramp reads rises by <slope, flow>."""
    x, y, weight, slope = ramp()
    budget, moving = 0.2, slope != 0
    best = budget * (slope.sign() if attack.norm == "linf" else SIDE * slope / slope.norm())
    assert best.abs().max() < 1  # so that no move leaves the ramp
    clean, rise = float((weight * x).sum()), float((slope * best).sum())
    for share, fools in ((1 - 1e-6, True), (1 + 1e-6, False)):
        model = Reader(weight, clean + share * rise)
        flow = attack.flow(model, x, y, budget=budget)
        images = attack.render(x, flow)
        assert bool(fooled(model, images, y)) is fools
    torch.testing.assert_close(flow[0][moving], best[moving], rtol=0, atol=1e-6)
    assert float(margin(model, images, y)) == pytest.approx(rise * (1 - share), abs=1e-9)


@every_entry
def test_a_pixel_is_moved_exactly_as_far_as_it_takes(attack: Entry) -> None:
    model, x, y = one_pixel({(3, 4): 0.8}, 0.5)  # brighter by 0.6 a pixel to the right
    critical = 0.5 if attack.norm == "linf" else 0.5 / 6  # the root mean square over 36 pixels
    for share, fools in ((1 - 1e-6, False), (1 + 1e-6, True)):
        flow = attack.flow(model, x, y, budget=share * critical)
        assert bool(fooled(model, attack.render(x, flow), y)) is fools
        assert flow[0, 0, 3, 3] == pytest.approx(share * 0.5, rel=1e-9)
        assert flow.count_nonzero() == 1


def sampled(x: Tensor, flow: Tensor) -> Tensor:
    """PyTorch's own warp by a flow in pixels, black beyond the edge."""
    axis = torch.linspace(-1, 1, x.shape[-1], dtype=x.dtype)
    down, right = torch.meshgrid(axis, axis, indexing="ij")
    grid = torch.stack((right, down), dim=-1) + 2 * flow.movedim(1, -1) / (x.shape[-1] - 1)
    return nn.functional.grid_sample(x, grid, padding_mode="zeros", align_corners=True)


ours = partial(warp, padding="zeros")


def sign_ascent(
    net: nn.Module, data: Pair, flow: Tensor, budget: float, step: float, steps: int, render: Render
) -> Tensor:
    """The plain loop: flow (B,2,H,W), budget and step in [-1,1] coordinates; a flow in them."""
    x, y = data
    for _ in range(steps):
        flow = flow.detach().requires_grad_()
        logits = net(render(x, to_pixels(flow, x.shape[-1])))
        loss = nn.functional.cross_entropy(logits, y, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, flow)
        flow = (flow + step * gradient.sign()).clamp(-budget, budget)
    return flow.detach()


# From rest a pixel may come back to its centre, a kink; powers of two make that exact everywhere.
@pytest.mark.parametrize(
    ("render", "budget"), [(ours, 1 / 128), (ours, 1 / 4), (sampled, 0.01), (sampled, 0.2)]
)
def test_sign_ascent_is_the_papers_loop(render: Render, budget: float) -> None:
    net = a_net()
    x, y = the_data(net)
    net.eval()
    start = identity_flow(x)
    if render is sampled:  # which prefers a side at a pixel centre: begin beside it
        start = 0.5 * budget * Samples(range(len(x))).uniform(start)
    steps, size, samples = 32, x.shape[-1], Samples(range(len(x)))
    normal = sign_ascent(net, (x, y), start, budget, budget / steps, steps, render)
    attack = FlowPGD("zeros", steps, 1 / steps, early_stop=False, rule="fixed")
    pixels, loss = to_pixels(budget, size), cross_entropy
    with attacking(net):
        found = attack.climb(net, x, y, to_pixels(start, size), pixels, loss, samples)
    theirs = loss(net, render(x, to_pixels(normal, size)), y)
    torch.testing.assert_close(loss(net, render(x, found), y), theirs, rtol=1e-9, atol=1e-12)
    assert (theirs > loss(net, x, y)).all()
    if render is ours:
        assert torch.equal(attack.flow(net, x, y, budget=pixels), found)


@pytest.fixture(scope="module")
def digits() -> Digits:
    """The digits network that comes with the code, and COUNT images that it gets right."""
    net = load(Path(__file__).parents[1] / "checkpoints/digits_baseline").model
    data = load_digits()
    x, y = torch.tensor(data.images).float()[:, None] / 16, torch.tensor(data.target)
    with torch.no_grad():
        right = net(x).argmax(1) == y
    return net, x[right][-COUNT:].contiguous(), y[right][-COUNT:]


@torch.no_grad()
def fooled_by(attack: Entry, digits: Digits, budget: float, samples: Samples) -> Tensor:
    net, x, y = digits
    images = attack(net, x, y, budget=budget, samples=samples)
    verdict: Tensor = net(images).argmax(1) != y
    return verdict


def test_no_entry_is_softer_than_plain_sign_ascent(digits: Digits) -> None:
    """But for one sample at one budget, for chance: ascents of other steps end in other places."""
    net, x, y = digits
    counts = []
    for budget in (0.1, 0.15, 0.2, 0.3):
        normal, samples = budget * 2 / 7, Samples(range(COUNT))
        plain = sign_ascent(net, (x, y), identity_flow(x), normal, normal / 8, 20, warp)
        least = net(warp(x, to_pixels(plain, 8))).argmax(1) != y
        fell = [fooled_by(attack, digits, budget, samples) for attack in (PGD, APGD, FGR)]
        assert fell[1][fell[0]].all()
        counts.append([int(each.sum()) for each in (least, *fell)])
    assert all(by_pgd >= max(least - 1, by_fgr) for least, by_pgd, _, by_fgr in counts)
    totals = [sum(column) for column in zip(*counts, strict=True)]
    assert totals[0] < totals[1] < totals[2]


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_apgd_goes_on_where_plain_ascent_stopped(norm: Norm, digits: Digits) -> None:
    budget = 0.2 if norm == "linf" else 0.1
    counts, apgd = [], FlowAPGD(norm=norm)
    attacks = (FlowPGD(norm=norm), apgd, replace(apgd, restarts=2))
    for attack, backwards, looks in zip(attacks, (20, 100, 180), (0, 2, 4), strict=True):
        samples = Samples(range(COUNT))
        verdict = fooled_by(attack, digits, budget, samples)
        counts.append(int(verdict.sum()))
        assert (samples.backwards[~verdict] == backwards).all()
        assert (samples.forwards[~verdict] == backwards + looks).all()
    assert counts[0] < counts[1] <= counts[2]


def places(attack: FlowPGD, budget: float = 1.0) -> list[float]:
    """Where the moving pixel stood at each look, on a slope without end."""
    model, x, y = one_pixel({(3, 4): 0.4, (3, 5): 0.6}, 9.0)
    attack(model, x, y, budget=budget)
    return [float(read - 0.2) / 0.2 for read in model.seen]


def test_the_sizes_of_the_steps_are_as_told() -> None:
    three = FlowPGD(steps=4, step_size=0.12)
    assert places(replace(three, rule="fixed")) == pytest.approx([0, 0.12, 0.24, 0.36])
    assert places(three) == pytest.approx([0, 0.21, 0.36, 0.45])
    assert places(replace(three, rule="halving")) == pytest.approx([0, 0.12, 0.24, 0.36, 0.48])
    # The first move is whole; a later one is half its own length and half the move before.
    assert places(replace(three, momentum=0.5)) == pytest.approx([0, 0.21, 0.39, 0.525])
    assert places(replace(three, step_size=0.24), 0.5) == pytest.approx([0, 0.21, 0.36, 0.45])
    assert places(replace(three, norm="l2", step_size=0.02)) == pytest.approx([0, 0.21, 0.36, 0.45])


@pytest.mark.parametrize(("rule", "near"), [("fixed", False), ("falling", True), ("halving", True)])
def test_steps_that_shrink_settle_on_a_peak(rule: Rule, near: bool) -> None:
    model, x, y = one_pixel({(3, 4): 0.8}, 9.0)  # brightest one pixel to the right
    attack = FlowPGD(steps=30, step_size=0.15, rule=rule)
    image = attack(model, x, y, budget=2.5)
    assert bool(image[0, 0, 3, 3] > 0.79) is near


def test_a_valley_needs_a_random_start() -> None:
    """Both sides of the pixel are equally bright: at rest there is no slope."""
    model, x, y = one_pixel({(3, 4): 0.8, (3, 2): 0.8}, 0.5)
    for norm, rule in itertools.product(("linf", "l2"), ("falling", "halving")):
        budget = 0.6 if norm == "linf" else 0.3
        rest = FlowPGD(norm=norm, rule=rule)
        assert rest.flow(model, x, y, budget=budget).count_nonzero() == 0
        for other in (replace(rest, random_start=True), replace(rest, restarts=2)):
            samples = Samples([0])
            assert fooled(model, other(model, x, y, budget=budget, samples=samples), y).all()
            assert (samples.backwards > 20).all() == (other.restarts == 2)


@pytest.mark.parametrize("attack", [PGD, FlowPGD(rule="halving"), APGD])
def test_a_sample_leaves_as_soon_as_it_is_fooled(attack: Entry) -> None:
    model, x, y = one_pixel({(3, 4): 0.8}, 0.3)
    for early_stop, passes in ((True, 2), (False, 20)):
        attack, samples = replace(attack, early_stop=early_stop), Samples([0])
        assert fooled(model, attack(model, x, y, budget=0.9, samples=samples), y).all()
        assert samples.backwards.tolist() == [passes]


@pytest.mark.parametrize("rule", ["fixed", "halving"])
def test_momentum_carries_on_beyond_a_peak(rule: Rule) -> None:
    for momentum, expected in ((0.0, [0.2, 0.62, 0.56, 0.62]), (0.5, [0.2, 0.62, 0.56, 0.56])):
        model, x, y = one_pixel({(3, 4): 0.8}, 9.0)  # 0.7 px and 1.4 px lie about the peak
        FlowPGD(steps=30, step_size=0.35, rule=rule, momentum=momentum)(model, x, y, budget=2.0)
        assert [float(read) for read in model.seen[:4]] == pytest.approx(expected)


some_attack = st.builds(
    FlowPGD,
    steps=st.just(5),
    step_size=st.floats(0.01, 4),
    norm=st.sampled_from(["linf", "l2"]),
    rule=st.sampled_from(["fixed", "falling", "halving"]),
    momentum=st.sampled_from([0.0, 0.3, 0.9]),
    random_start=st.booleans(),
    early_stop=st.booleans(),
)


@settings(max_examples=25, deadline=None)
@given(attack=some_attack, budget=st.floats(0, 12))
def test_both_balls_are_kept(attack: FlowPGD, budget: float) -> None:
    net = a_net()
    x, y = the_data(net)
    flow = attack.flow(net, x[:3], y[:3], budget=budget)
    size = flow.abs().amax((1, 2, 3))
    if attack.norm == "l2":
        size = flow.square().sum((1, 2, 3)).sqrt() / 8
    assert (size <= budget * (1 + 1e-9)).all()
    torch.testing.assert_close(size, attack.threat.size(flow))


@every_entry
def test_the_scout_is_one_whole_step(attack: Entry) -> None:
    (x, y, weight, slope), samples = ramp(), Samples([0])
    flow = attack.scout.flow(Reader(weight, 9.0), x, y, budget=0.2, samples=samples)
    assert samples.backwards.tolist() == [1]
    assert attack.threat.name == ("flow" if attack.norm == "linf" else "flow-l2")
    assert float(attack.threat.size(flow)) == pytest.approx(0.2)
    assert (flow[0] * slope >= 0).all()


def test_momentum_of_one_would_never_turn() -> None:
    with pytest.raises(UserError, match="FlowPGD: momentum must be below 1, not 1"):
        FlowPGD(momentum=1.0)
