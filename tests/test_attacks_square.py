"""Square: its schedule, its squares, what it leaves undone, and torchattacks' counts."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torchattacks
from attack_stage import a_net, fooled, the_data
from test_attacks_oracles import linear
from test_attacks_parity import digits as digits  # noqa: PLC0414 - a fixture
from test_attacks_table import passes_counted
from torch import Tensor, nn

from robustbench_gpm.attacks.square import AHEAD, Square, _pattern, _window
from robustbench_gpm.attacks.threats import THREATS
from robustbench_gpm.core import Samples
from robustbench_gpm.losses import margin

NORMS = ["linf", "l2", "l1"]
every_norm = pytest.mark.parametrize("norm", NORMS)
BUDGETS = {"linf": 0.05, "l2": 0.5, "l1": 3.0}


def square(norm: str, queries: int = 60, **options: Any) -> Square:
    return Square(norm=norm, queries=queries, **options)  # type: ignore[arg-type]


class Stubborn(nn.Module):
    """A linear model that nothing fools, which keeps what it is asked and what it answers."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.x, self.y = linear(bias=1e3)
        self.asked: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.asked.append(x.clone())
        logits: Tensor = self.linear(x)
        return logits


def test_the_square_shrinks_as_published() -> None:
    published = {0: 1, 11: 2, 51: 4, 201: 8, 501: 16, 1001: 32, 2001: 64, 4001: 128, 8001: 512}
    for queries in (10_000, 5000):
        attack = Square(queries=queries)
        for query, divisor in published.items():
            at = math.ceil(query * queries / 10_000)
            expected = max(round(math.sqrt(0.8 / divisor * 224 * 224)), 1)
            assert attack.side(at, 224, 224) == expected, (queries, query)
    assert Square().side(4999, 8, 8) == 1
    assert Square(p_init=0.2).side(0, 20, 20) == round(math.sqrt(80))
    assert square("l2").side(0, 32, 32) == 29
    assert square("l2").side(59, 32, 32) == 3
    assert square("l1", p_init=1.0).side(0, 8, 5) == 5


@every_norm
def test_a_query_changes_squares_of_its_size_and_stays_inside(norm: str) -> None:
    model, budget = Stubborn(), BUDGETS[norm]
    attack = square(norm, 40)
    attack(model, model.x, model.y, budget=budget)
    _, begin, *tries = model.asked
    assert len(tries) == 39
    torch.testing.assert_close(
        THREATS[norm].size(begin - model.x), torch.full((5,), budget, dtype=torch.float64)
    )
    best, reached = begin, margin.score(model.linear(begin), model.y)
    for number, tried in enumerate(tries):
        assert tried.min() >= 0
        assert tried.max() <= 1
        assert (THREATS[norm].size(tried - model.x) <= budget * (1 + 1e-9)).all()
        side = attack.side(number, 6, 6)
        for one, other in zip(tried, best, strict=True):
            changed = (one - other).abs().amax(0) > 1e-12
            rows, columns = changed.any(1).nonzero(), changed.any(0).nonzero()
            assert len(rows) > 0  # no query is wasted
            assert int(changed.sum()) <= (1 if norm == "linf" else 2) * side**2
            if norm == "linf":
                assert int(rows.max() - rows.min()) < side
                assert int(columns.max() - columns.min()) < side
        losses = margin.score(model.linear(tried), model.y)
        better = losses > reached
        best = torch.where(better[:, None, None, None], tried, best)
        reached = torch.maximum(losses, reached)
    found = attack(model, model.x, model.y, budget=budget)
    assert torch.equal(found, best)  # what did not raise the margin was undone


def test_begins_with_stripes() -> None:
    model = Stubborn()
    square("linf", 1)(model, model.x, model.y, budget=0.05)
    stripes = (model.asked[1] - model.x) / 0.05
    torch.testing.assert_close(stripes.abs(), torch.ones_like(stripes))
    assert torch.equal(stripes.sign(), stripes.sign()[:, :, :1].expand_as(stripes))
    assert len(stripes.sign()[:, :, 0].unique(dim=0)) == 5


def test_linear_models_fall_almost_as_far_as_they_can() -> None:
    model, x, y = linear(bias=1e3)
    best = 0.1 * model.weight.abs().sum()
    fall = model.score(x) - model.score(square("linf", 1000)(model, x, y, budget=0.1))
    assert (fall > 0.99 * best).all()
    # The smallest square has nine pixels in l2 and l1, so that the very best is out of reach.
    for norm, budget, share in (("l2", 0.5, 0.45), ("l1", 1.0, 0.25)):
        begin, end = (
            model.score(square(norm, queries)(model, x, y, budget=budget)) for queries in (1, 400)
        )
        best = budget * (model.weight.norm() if norm == "l2" else model.weight.abs().max())
        assert (model.score(x) - end > share * best).all()
        assert (begin - end > share / 2 * best).all()


@every_norm
def test_is_no_softer_than_torchattacks(
    norm: str, digits: tuple[nn.Module, Tensor, Tensor]
) -> None:
    net, x, y = digits[0].float(), digits[1][:64].float(), digits[2][:64]
    budget = {"linf": 0.1, "l2": 0.8, "l1": 4.0}[norm]
    ours = fooled(net, square(norm, 300)(net, x, y, budget=budget), y).sum()
    if norm == "l1":  # they have none: more than the start alone fools, and not by the budget
        theirs = fooled(net, square(norm, 1)(net, x, y, budget=budget), y).sum() + 10
    else:
        attack = torchattacks.Square(net, norm=norm.capitalize(), eps=budget, n_queries=300)
        attack.set_mode_default()
        theirs = fooled(net, attack(x, y), y).sum()
    net.double()
    assert ours >= theirs


@every_norm
def test_each_sample_is_on_its_own(norm: str) -> None:
    net = a_net()
    x, y = the_data(net)
    budget, queries = (
        {"linf": 0.006, "l2": 0.1, "l1": 0.4}[norm],
        2 * AHEAD + 30,
    )  # through several blocks of draws
    samples = Samples(range(20, 28), 3)
    with passes_counted(net) as counted:
        whole = square(norm, queries)(net, x, y, budget=budget, samples=samples)
    assert int(samples.forwards.sum()) == counted["forwards"]
    assert counted["backwards"] == 0
    assert 0 < int(fooled(net, whole, y).sum()) < len(x)
    assert len(samples.forwards.unique()) > 2  # who is fooled leaves
    for place in (6, 2, 0):
        alone = square(norm, queries)(
            net, x[[place]], y[[place]], budget=budget, samples=Samples([20 + place], 3)
        )
        torch.testing.assert_close(alone[0], whole[place], rtol=0, atol=1e-9)
    again, other = (
        square(norm, queries)(net, x, y, budget=budget, samples=Samples(range(20, 28), seed))
        for seed in (3, 4)
    )
    assert torch.equal(again, whole)
    assert not torch.equal(other, whole)


def test_restarts_only_add_and_who_is_fooled_already_costs_one_pass() -> None:
    net = a_net()
    x, y = the_data(net)
    y = torch.where(torch.arange(len(y)) == 0, (y + 1) % 4, y)
    few, many = Samples(range(8)), Samples(range(8))
    once = square("linf", 20)(net, x, y, budget=0.02, samples=few)
    attack = replace(square("linf", 20), restarts=5)
    often = attack(net, x, y, budget=0.02, samples=many)
    assert torch.equal(often[0], x[0])
    assert int(few.forwards[0]) == int(many.forwards[0]) == 1
    assert int(few.forwards.max()) == 21
    assert int(many.forwards.max()) == 5 * 21
    by_one, by_many = fooled(net, once, y), fooled(net, often, y)
    assert (by_many | ~by_one).all()


@every_norm
@pytest.mark.parametrize("shape", [(1, 1, 2), (3, 7, 3), (1, 28, 11)])
@pytest.mark.parametrize("classes", [2, 3])
def test_any_shape_and_few_classes_will_do(
    norm: str, shape: tuple[int, int, int], classes: int
) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes))
    x = torch.rand(2, *shape)
    y = net(x).argmax(1)
    images = square(norm, 12)(net, x, y, budget=0.2)
    assert images.dtype == torch.float32
    assert (THREATS[norm].size(images - x) <= 0.2 * (1 + 1e-5)).all()
    assert images.min() >= 0
    assert images.max() <= 1
    assert not torch.equal(images, x)


def test_windows_reach_every_place_equally() -> None:
    x = torch.arange(20.0).view(1, 1, 4, 5).expand(4000, 1, 4, 5)
    draw = Samples(range(4000)).uniform(torch.empty(4000, 2))
    draw[0] = 1.0  # a float32 just below 1 rounds to it
    corners = x[_window(x, draw, 3)][:, 0, 0, 0]
    places, counts = corners.unique(return_counts=True)
    assert places.tolist() == [0, 1, 2, 5, 6, 7]
    assert (counts - 4000 / 6).abs().max() < 120
    assert x[_window(x, draw, 3)][0, 0, :, 0].tolist() == [7, 12, 17]


def test_the_pattern_has_two_opposite_halves_of_size_one() -> None:
    for norm in ("l2", "l1"):
        upright, turned = _pattern(7, norm)
        assert torch.equal(turned, upright.T)
        assert float(THREATS[norm].size(upright[None])) == pytest.approx(1)
        assert (upright[:3] > 0).all()
        assert (upright[3:] < 0).all()
        assert torch.equal(upright, upright.flip(1))
        # 1 + 1/4 + 1/9 + 1/16 where all rings lie over each other, 1/16 at the edge.
        ratio = float(upright[1].max() / upright[1].min())
        assert ratio == pytest.approx((1 + 1 / 4 + 1 / 9 + 1 / 16) * 16)
