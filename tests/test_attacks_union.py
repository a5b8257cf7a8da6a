"""The worst of several attacks, each with a budget of its own, and attacks on top of each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from attack_stage import COUNT, a_net, fooled, the_data
from test_sweep import Linear, columns, distances, linear_split
from torch import Tensor, nn

from robustbench_gpm.attacks import ATTACKS, Attack
from robustbench_gpm.attacks.flow import FlowPGD
from robustbench_gpm.attacks.named import attack_named
from robustbench_gpm.attacks.perturbed import Perturbed
from robustbench_gpm.attacks.pgd import PGD
from robustbench_gpm.attacks.union import Composed, Union
from robustbench_gpm.core import Samples, UserError
from robustbench_gpm.deformation import warp
from robustbench_gpm.sweep import AttackPlan

FLOW, CHANGE = 0.04, 0.006  # budgets that fool some of the images


def both(first: Attack, second: Attack, budgets: tuple[float, float]) -> Union:
    return Union((("first", first), ("second", second)), budgets)


def test_the_union_fools_exactly_whom_a_member_fools() -> None:
    net = a_net()
    x, y = the_data(net)
    pgd, flow = PGD(), FlowPGD()
    budgets = (CHANGE, 0.05)
    alone = [
        fooled(net, attack(net, x, y, budget=budget, samples=Samples(range(COUNT))), y)
        for attack, budget in zip((pgd, flow), budgets, strict=True)
    ]
    samples = Samples(range(COUNT))
    images = both(pgd, flow, budgets)(net, x, y, budget=1.0, samples=samples)
    assert bool((alone[0] != alone[1]).any())
    assert torch.equal(fooled(net, images, y), alone[0] | alone[1])
    assert samples.broken_by == ["first" if one else "second" for one in alone[0]]


def test_a_perturbation_is_measured_by_the_members_that_make_its_kind() -> None:
    union = Union(
        (("a", PGD()), ("b", PGD("l2")), ("c", FlowPGD())),
        (0.1, 2.0, 0.5),
    )
    x = torch.rand(3, 1, 4, 4, generator=torch.manual_seed(1)) / 2 + 0.2
    change = torch.zeros_like(x)
    change[0, 0, 0, 0] = 0.2  # 2 budgets of linf, a tenth of l2's
    change[1] = 0.05  # half a budget of linf, .1 of l2's
    flow = torch.zeros(3, 2, 4, 4)
    flow[2, 1, 2, 2] = 0.25
    found = Perturbed(warp(x, flow) + change, flow, change)
    torch.testing.assert_close(union.size(found), torch.tensor([0.1, 0.1, 0.5]))
    drawn = union.drawn_in(x, found, torch.tensor([0.05, 0.2, 0.25]))
    torch.testing.assert_close(union.size(drawn), torch.tensor([0.05, 0.1, 0.25]))
    torch.testing.assert_close(drawn.images[0] - x[0], change[0] / 2)
    torch.testing.assert_close(drawn.images[2], warp(x, flow / 2)[2])


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_curve_of_a_union_is_the_lower_envelope_of_its_members(order: tuple[int, int]) -> None:
    data = linear_split()
    norms, budgets = ("linf", "l2"), (0.1, 0.25)
    away = [distances(data, norm) / budget for norm, budget in zip(norms, budgets, strict=True)]
    nearest = np.minimum(*away)
    assert not np.array_equal(*away)
    members = tuple((norms[i], PGD(norms[i], steps=20)) for i in order)  # type: ignore[arg-type]
    union = Union(members, tuple(budgets[i] for i in order))
    ladder = tuple(float(share) for share in np.quantile(nearest, (0.2, 0.4, 0.6, 0.8)) * 1.02)
    found = columns(Linear(), data, AttackPlan("union", union, ladder))
    wanted = [next((b for b in ladder if b >= share), np.nan) for share in nearest]
    np.testing.assert_allclose(found.smallest_budget, wanted)


def test_a_composition_reaches_what_neither_part_does() -> None:
    net = a_net()
    x, y = the_data(net)
    parts = ("flow-pgd", FlowPGD()), ("pgd", PGD())
    composed = Composed(*parts, (FLOW, CHANGE))
    alone = [
        fooled(net, attack(net, x, y, budget=budget), y)
        for (_, attack), budget in zip(parts, (FLOW, CHANGE), strict=True)
    ]
    samples = Samples(range(COUNT))
    found = composed.find(net, x, y, budget=1.0, samples=samples)
    over = fooled(net, found.images, y)
    assert bool((over >= (alone[0] | alone[1])).all())
    assert bool((over & ~alone[0] & ~alone[1]).any())
    said = {name for name, fell in zip(samples.broken_by, over.tolist(), strict=True) if fell}
    assert said == {"flow-pgd", "flow-pgd, then pgd"}
    torch.testing.assert_close(found.images, warp(x, found.flow) + found.change)
    both = found.moves & found.changes
    assert bool(both.any())
    half = composed.drawn_in(x, found, 0.5)
    assert bool((composed.size(half) <= 0.5 + 1e-9).all())
    torch.testing.assert_close(half.images, (warp(x, half.flow) + half.change).clamp(0, 1))


def test_a_composition_is_no_softer_than_its_second_part() -> None:
    """A deformation that leads away from the boundary must not save the sample."""

    class Adrift(FlowPGD):
        def deform(
            self, model: nn.Module, x: Tensor, y: Tensor, budget: float, *_: object
        ) -> Tensor:
            return budget * (x.new_ones(len(x), 2, 1, 1)).expand(-1, -1, *x.shape[2:]).clone()

    net = a_net()
    x, y = the_data(net)
    composed = Composed(("adrift", Adrift()), ("pgd", PGD()), (0.2, CHANGE))
    samples = Samples(range(COUNT))
    over = fooled(net, composed(net, x, y, budget=1.0, samples=samples), y)
    assert bool((over >= fooled(net, PGD()(net, x, y, budget=CHANGE), y)).all())


def test_they_are_named_with_their_budgets() -> None:
    union = attack_named("union:pgd@8/255+stadv@0.5")
    assert union == Union((("pgd", PGD()), ("stadv", ATTACKS["stadv"])), (8 / 255, 0.5))
    composed = attack_named("composed:flow-pgd@1+pgd-l2@0.5")
    assert composed == Composed(("flow-pgd", FlowPGD()), ("pgd-l2", PGD("l2")), (1.0, 0.5))
    foreign = attack_named("union:torchattacks:PGD@8/255+flow-pgd@1")
    assert isinstance(foreign, Union)
    assert foreign.members[0][0] == "torchattacks:PGD"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("union:pgd+flow-pgd", "needs a budget of its own"),
        ("union:pgd@8/255", "at least two attacks"),
        ("union:pgd@8+flow-pgd@1", "write 8/255"),
        ("union:pgd@8/255+flow-pgdd@1", "did you mean 'flow-pgd'"),
        ("union:pgd@8/255+union@1", "none of them a union"),
        ("union:pgd@8/255+stadv-tau@20", "cannot be drawn back"),
        ("composed:pgd@8/255+flow-pgd@1", "moves pixels, then"),
        ("composed:flow-pgd@1+stadv@1", "second must be"),
        ("composed:flow-pgd@1+pgd@8/255+pgd@8/255", "moves pixels, then"),
        ("onion:pgd@8/255", "before a colon stands"),
    ],
)
def test_what_cannot_be_put_together_is_told(name: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        attack_named(name)
