"""The parts of APGD, and what it reaches where the best is known in closed form."""

from __future__ import annotations

import pytest
import torch
from attack_stage import a_net, the_data
from torch import Tensor, nn

from robustbench_gpm.attacks.apgd import APGD, AutoPGD, TargetedAPGD, random_start
from robustbench_gpm.attacks.apgd_l1 import project_l1, shrinking_radii, sparse_direction
from robustbench_gpm.attacks.base import attacking
from robustbench_gpm.attacks.climb import Climbers, HalvingSteps, checkpoints, climb
from robustbench_gpm.attacks.threats import THREATS
from robustbench_gpm.core import Samples
from robustbench_gpm.losses import LOSSES

NORMS = ["linf", "l2", "l1"]
# At 0.3 the best changes one entry; the rule stops at two, which share a step for good.
L1_CASES = [(0.3, True, 0.8), (2.0, True, 0.97), (8.0, True, 0.97), (8.0, False, 0.92)]


class Linear(nn.Module):
    """Logits 0 and <weight, x> + 30: class 1 for every image near; `classes` - 2 more far below."""

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        noise = torch.randn(2, 6, 6, generator=torch.manual_seed(0), dtype=torch.float64)
        self.weight, self.classes = 0.2 * noise, classes

    def score(self, x: Tensor) -> Tensor:
        return (self.weight * x).flatten(1).sum(1) + 30

    def forward(self, x: Tensor) -> Tensor:
        score = self.score(x)
        others = [torch.full_like(score, -100.0) for _ in range(self.classes - 2)]
        return torch.stack((torch.zeros_like(score), score, *others), dim=1)


def grey(count: int = 4) -> tuple[Tensor, Tensor]:
    noise = torch.rand(count, 2, 6, 6, generator=torch.manual_seed(1), dtype=torch.float64)
    return noise, torch.ones(count, dtype=torch.int64)


def best_fall(x: Tensor, weight: Tensor, norm: str, budget: float) -> Tensor:
    """By how much the score can fall: all the room in linf, the greatest weights first in l1."""
    room = torch.where(weight > 0, x, 1 - x).flatten(1)
    if norm == "linf":
        return (weight.abs().flatten() * room.clamp_max(budget)).sum(1)
    order = weight.abs().flatten().argsort(descending=True)
    room = room[:, order]
    spent = torch.minimum(room, (budget - room.cumsum(1) + room).clamp_min(0))
    return (weight.abs().flatten()[order] * spent).sum(1)


def test_checkpoints_are_those_of_the_paper() -> None:
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(1) == [1]
    assert checkpoints(10) == [2, 3, 4, 5, 6, 7, 8, 9, 10]


@pytest.mark.parametrize("loss", ["cross_entropy", "dlr", "margin"])
@pytest.mark.parametrize("budget", [0.1, 0.45])
def test_linf_reaches_the_corner_of_ball_and_box(loss: str, budget: float) -> None:
    model, (x, y) = Linear(), grey()
    fall = model.score(x) - model.score(APGD(loss=loss)(model, x, y, budget=budget))
    torch.testing.assert_close(fall, best_fall(x, model.weight, "linf", budget))


def test_l2_reaches_the_far_side_of_the_sphere() -> None:
    model, (x, y) = Linear(), grey()
    x = 0.4 + 0.2 * x
    fall = model.score(x) - model.score(APGD("l2", loss="margin")(model, x, y, budget=0.5))
    torch.testing.assert_close(fall, 0.5 * model.weight.norm().expand(4), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("budget", "shrinking", "least"), L1_CASES)
def test_l1_comes_near_the_best_of_ball_and_box(
    budget: float, shrinking: bool, least: float
) -> None:
    model, (x, y) = Linear(), grey()
    images = APGD("l1", loss="margin", shrinking=shrinking)(model, x, y, budget=budget)
    assert (THREATS["l1"].size(images - x) <= budget * (1 + 1e-9)).all()
    share = (model.score(x) - model.score(images)) / best_fall(x, model.weight, "l1", budget)
    assert share.max() <= 1 + 1e-9
    assert share.min() >= least


@pytest.mark.parametrize("radius", [0.0, 0.2, 3.0, 40.0])
@pytest.mark.parametrize("spread", [0.1, 1.0, 5.0])
def test_the_l1_projection_is_the_nearest_point_of_ball_and_box(
    radius: float, spread: float
) -> None:
    x, _ = grey()
    noise = torch.randn(x.shape, generator=torch.manual_seed(2), dtype=x.dtype)
    point = x + spread * noise
    nearest = project_l1(x, point, radius)
    assert nearest.min() >= 0
    assert nearest.max() <= 1
    size = (nearest - x).abs().flatten(1).sum(1)
    assert (size <= radius * (1 + 1e-12)).all()
    # The nearest point is the one from which no allowed point lies towards `point`: the furthest
    # that any allowed point goes that way is found as the best of a linear function.
    way = (point - nearest).flatten(1)
    best = torch.stack(
        [best_fall(x[i : i + 1], -way[i].view_as(x[i]), "l1", radius)[0] for i in range(len(x))]
    )
    reached = (way * (nearest - x).flatten(1)).sum(1)
    torch.testing.assert_close(reached, best, rtol=1e-9, atol=1e-9)


def test_a_sparse_direction_shares_a_step_among_the_largest_entries() -> None:
    gradient = torch.tensor([[3.0, -4.0, 1.0, 0.0, 2.0]])
    for share, expected in (
        (0.4, [0.5, -0.5, 0.0, 0.0, 0.0]),
        (0.0, [0.0, -1.0, 0.0, 0.0, 0.0]),
        (1.0, [0.25, -0.25, 0.25, 0.0, 0.25]),
    ):
        direction = sparse_direction(gradient, torch.tensor([share]))
        torch.testing.assert_close(direction, torch.tensor([expected]))


def test_the_radii_shrink_over_the_steps() -> None:
    assert shrinking_radii(1.0, 100) == [(3.0, 30), (2.0, 30), (1.0, 40)]
    assert shrinking_radii(1.0, 1) == [(1.0, 1)]


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_run_begins_at_the_rim(norm: str) -> None:
    x, _ = grey()
    start = random_start(x, 0.1, norm, Samples(range(4)))
    torch.testing.assert_close(THREATS[norm].size(start - x), torch.full((4,), 0.1).double())
    assert not torch.allclose(start[0] - x[0], start[1] - x[1])


def test_a_step_is_halved_where_it_does_not_help_and_goes_on_from_the_best_point() -> None:
    start = torch.zeros(3, 1)
    rule = HalvingSteps(start, 1.0, torch.sign, lambda _, p: p, steps=10)
    now = Climbers(start, torch.zeros(3), start)
    nobody, slope = torch.zeros(3, dtype=torch.bool), torch.ones(3, 1)
    losses = [[0.0, 0.0, 0.0], [1.0, 1.0, -1.0], [2.0, 0.5, -2.0], [3.0, 3.0, 3.0]]
    points = []
    for done, seen in enumerate(losses):
        points.append(now.p)
        now.learn(torch.tensor(seen), nobody, slope)
        now.p = rule.advance(now, done)
    # The first checkpoint is after 2 steps: both rose, one rose, none did. Next each step's.
    assert rule.size.tolist() == [1.0, 0.5, 0.5]
    assert now.best_loss.tolist() == [3.0, 3.0, 3.0]
    # The second goes on from its second point, the third from its first; the momentum is measured
    # from where each stood before the last step, the second point.
    torch.testing.assert_close(points[3][1], points[1][1] + 0.75 * 0.5)
    drift = points[0][2] - points[1][2]
    torch.testing.assert_close(points[3][2], points[0][2] + 0.75 * 0.5 + 0.25 * drift)


def test_a_step_not_halved_last_time_is_halved_when_the_best_loss_stands_still() -> None:
    start = torch.zeros(1, 1)
    rule = HalvingSteps(start, 1.0, torch.sign, lambda _, p: p, steps=10, rho=0.4)
    now = Climbers(start, torch.zeros(1), start)
    sizes = []
    for done, loss in enumerate([0.0, 9.0, 1.0, 2.0, 3.0]):
        now.learn(torch.tensor([loss]), torch.tensor([False]), torch.ones(1, 1))
        now.p = rule.advance(now, done)
        sizes.append(float(rule.size))
    # Half the first two steps rose, more than 0.4; then every step rises, below the best of all.
    assert sizes == [1.0, 1.0, 1.0, 0.5, 0.5]


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("attack", [APGD(loss="dlr"), TargetedAPGD()])
def test_few_classes_are_no_trouble(attack: AutoPGD, norm: str, classes: int) -> None:
    kind = type(attack)
    attack = kind(norm, steps=10, loss="dlr") if kind is APGD else kind(norm, steps=10)
    model, (x, y) = Linear(classes), grey()
    samples = Samples(range(4))
    images = attack(model, x, y, budget=0.1, samples=samples)
    assert (model.score(images) < model.score(x)).all()
    runs = classes - 1 if kind is TargetedAPGD else 1
    assert samples.backwards.tolist() == [10 * runs] * 4


def test_the_loop_climbs_in_another_space_too() -> None:
    """One brightness for each image, between -0.2 and 0.2, by the same loop and rule."""
    net = a_net().eval()
    x, y = the_data(net)
    start = torch.zeros(len(x), 1, dtype=x.dtype)
    rule = HalvingSteps(start, 0.4, torch.sign, lambda _, p: p.clamp(-0.2, 0.2), steps=20)

    def render(x: Tensor, p: Tensor) -> Tensor:
        return x + p[:, :, None, None]

    loss, samples = LOSSES["margin"], Samples(range(len(x)))
    with attacking(net):
        got = climb(
            net, x, y, start, loss, samples, rule, steps=20, early_stop=False, render=render
        )
        grid = torch.linspace(-0.2, 0.2, 401, dtype=x.dtype)
        best = torch.stack([loss(net, x + shift, y) for shift in grid]).amax(0)
    assert (got.loss >= best - 1e-3 - 0.01 * best.abs()).double().mean() >= 0.75
    assert (got.best.abs() <= 0.2).all()
