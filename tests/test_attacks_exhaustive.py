"""Grids and random draws of transformations against brute force and foolbox."""

from __future__ import annotations

import math

import eagerpy as ep
import foolbox
import pytest
import torch
from attack_stage import COUNT, a_net, fooled, the_data
from foolbox.attacks.spatial_attack_transformations import rotate_and_shift
from torch import Tensor, nn

from robustbench_gpm.attacks import exhaustive
from robustbench_gpm.attacks.exhaustive import (
    Exhaustive,
    RotateTranslate,
    RotateTranslateRandom,
    Zoom,
    grid,
)
from robustbench_gpm.attacks.transforms import Rigid, ladder, smooth_ladder
from robustbench_gpm.core import Samples, UserError
from robustbench_gpm.deformation import max_displacement, warp

SEARCHES: list[Exhaustive] = [
    RotateTranslate(translation=0.04, rotation=8.0, translations=3, rotations=5),
    RotateTranslateRandom(translation=0.04, rotation=8.0),
    Zoom(zooms=9),
]
every_search = pytest.mark.parametrize("attack", SEARCHES, ids=lambda attack: type(attack).__name__)


def test_the_grid_and_its_ladder() -> None:
    points = grid(5, 5, 31)[0]
    assert points.shape == (774, 3)  # without the one that moves nothing
    assert len(torch.unique(points, dim=0)) == 774
    assert grid(1, 1, 3).tolist() == [[[0, 0, -1], [0, 0, 1]]]
    attack = RotateTranslate()
    sizes = Rigid().size(points, 32, 32)
    budgets = attack.default_budgets(32, 32)
    assert len(budgets) == 6
    assert sorted(budgets) == list(budgets)
    assert sizes.max() <= budgets[-1] <= 1.01 * float(sizes.max())
    assert ladder(13.04) == (0.815, 1.63, 3.26, 6.52, 9.78, 13.1)
    assert smooth_ladder(32, 24) == (0.4, 0.8, 1.6, 3.2, 4.8, 6.4)


def one_by_one(
    attack: Exhaustive, net: nn.Module, x: Tensor, y: Tensor, samples: Samples
) -> Tensor:
    """The size of the smallest candidate that fools each sample, infinite where none does."""
    points = attack.candidates(samples)
    points = points.expand(len(x), -1, -1) if len(points) == 1 else points
    best = torch.where(fooled(net, x, y), 0.0, torch.inf).double()
    for j in range(points.shape[1]):
        flow = attack.family.flow(points[:, j], *x.shape[2:])
        hit = fooled(net, warp(x, flow, attack.padding).clamp(0, 1), y)
        best = torch.where(hit, torch.minimum(best, max_displacement(flow)), best)
    return best


@every_search
def test_the_smallest_on_the_grid_is_found_and_leaving_early_changes_no_verdict(
    attack: Exhaustive,
) -> None:
    net = a_net()
    x, y = the_data(net)
    y[0] = (y[0] + 1) % 4  # fooled as it is
    expected = one_by_one(attack, net, x, y, Samples(range(COUNT)))
    samples = Samples(range(COUNT))
    found = attack.find(net, x, y, budget=math.inf, samples=samples)
    hit = expected.isfinite()
    assert torch.equal(fooled(net, found.images, y), hit)
    assert 2 <= hit[1:].sum() < COUNT - 1
    torch.testing.assert_close(attack.size(found)[hit], expected[hit])
    assert not found.flow[~hit].any()
    number = attack.candidates(Samples(range(1))).shape[1]
    assert (samples.forwards[~hit] == number + 1).all()
    assert samples.forwards[0] == 1
    assert samples.forwards[hit].double().mean() < number
    assert not samples.backwards.any()
    # A budget leaves out what lies beyond, for the same answers inside.
    budget = float(expected[hit].median())
    inside = attack.find(net, x, y, budget=budget)
    torch.testing.assert_close(
        attack.size(inside), torch.where(expected <= budget + 1e-9, expected, 0.0)
    )


@every_search
def test_how_many_are_tried_at_once_changes_nothing(
    attack: Exhaustive, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = a_net()
    x, y = the_data(net)

    def spent(images: int, ahead: int, rows: slice) -> tuple[Tensor, Tensor]:
        monkeypatch.setattr(exhaustive, "IMAGES", images)
        monkeypatch.setattr(exhaustive, "AHEAD", ahead)
        samples = Samples(range(COUNT)[rows])
        found = attack.find(net, x[rows], y[rows], budget=3.0, samples=samples)
        return found.flow, samples.forwards

    flow, passes = spent(256, 8, slice(None))
    for images, ahead, rows in ((1, 8, slice(None)), (13, 8, slice(2, 7)), (256, 1, slice(None))):
        again, cost = spent(images, ahead, rows)
        torch.testing.assert_close(again, flow[rows], rtol=0, atol=0)
        if ahead == 8:
            assert torch.equal(cost, passes[rows])
    alone, exact = spent(256, 10**6, slice(None))
    assert torch.equal(alone, flow)
    assert (passes <= exact * 9 / 8 + 1).all()
    assert (passes >= exact).all()
    monkeypatch.setattr(exhaustive, "AHEAD", 1)  # many at once, some of them beyond the budget
    sizes = max_displacement(flow)
    for size in sizes[sizes > 0]:
        budget = 0.999 * float(size)
        inside = attack.find(net, x, y, budget=budget)
        torch.testing.assert_close(attack.size(inside), torch.where(sizes <= budget, sizes, 0.0))


@every_search
def test_nothing_to_do(attack: Exhaustive) -> None:
    net = a_net()
    x, y = the_data(net)
    samples = Samples(range(COUNT))
    assert torch.equal(attack(net, x, y, budget=0.0, samples=samples), x)
    assert (samples.forwards == 1).all()
    assert attack(net, x[:0], y[:0], budget=1.0).shape == (0, 2, 8, 8)
    for wrong in (0.0, 1.2):
        with pytest.raises(UserError, match="between least and most"):
            Zoom(least=wrong)


class OnePixel(nn.Module):
    """Class 1 where the pixel at (8,8) is bright."""

    def forward(self, x: Tensor) -> Tensor:
        bright = x[:, 0, 8, 8]
        return torch.stack((torch.full_like(bright, 0.5), bright), dim=1)


def test_a_model_that_looks_at_one_pixel_is_fooled_by_the_shift_it_takes() -> None:
    x = torch.zeros(3, 1, 16, 16)
    for i, half in enumerate((0, 2, 5)):
        x[i, :, :, 8 - half : 9 + half] = 1
    attack = RotateTranslate(translation=0.25, rotation=0.0, translations=9, rotations=1)
    found = attack.find(OnePixel(), x, torch.ones(3, dtype=torch.int64), budget=math.inf)
    assert attack.size(found).tolist() == [1, 3, 0]  # the third takes 6 and the grid ends at 4
    assert found.flow[:, 0].abs().amax((1, 2)).tolist() == [1, 3, 0]
    assert OnePixel()(found.images).argmax(1).tolist() == [0, 0, 1]


SIDE = 14


@pytest.fixture(scope="module")
def theirs() -> tuple[nn.Module, Tensor, Tensor]:
    """A network in float32 that no shift fools, framed images and its own labels for them."""
    torch.manual_seed(3)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 4),
    ).eval()
    x = torch.zeros(40, 1, SIDE, SIDE)
    x[:, :, 4:-4, 4:-4] = nn.functional.interpolate(torch.rand(40, 1, 4, 4), size=6, mode="bicubic")
    x = x.clamp(0, 1)
    with torch.no_grad():
        net[-1].bias -= net(x).mean(0)
        return net, x, net(x).argmax(1)


def as_foolbox() -> RotateTranslate:
    """Foolbox's attack: black beyond the edge, and its pixels a little short.

    It divides pixels by half the side and samples with align_corners, where half the side less half
    a pixel is 1: what it calls 3 px moves by 3 (n - 1) / n.
    """
    return RotateTranslate(padding="zeros", translation=3 * (SIDE - 1) / SIDE**2)


def test_every_candidate_shows_what_foolbox_shows(theirs: tuple[nn.Module, Tensor, Tensor]) -> None:
    _, x, _ = theirs
    attack = as_foolbox()
    for p in grid(3, 3, 5)[0]:
        shift, angle = (3 * float(p[0]), 3 * float(p[1])), 30 * float(p[2])
        other = rotate_and_shift(ep.astensor(x), translation=shift, rotation=angle).raw
        flow = attack.family.flow(p[None].expand(len(x), -1), SIDE, SIDE).float()
        torch.testing.assert_close(attack.render(x, flow), other, rtol=0, atol=2e-5)


def test_fools_whom_foolbox_fools(theirs: tuple[nn.Module, Tensor, Tensor]) -> None:
    net, x, y = theirs
    model = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
    spatial = foolbox.attacks.SpatialAttack(
        max_translation=3, max_rotation=30, num_translations=5, num_rotations=31, grid_search=True
    )
    _, _, success = spatial(model, x, foolbox.criteria.Misclassification(y))
    samples = Samples(range(len(x)))
    images = as_foolbox()(net, x, y, budget=math.inf, samples=samples)
    with torch.no_grad():
        ours = net(images).argmax(1) != y
    assert torch.equal(ours, success)
    assert 4 <= int(success.sum()) <= len(x) - 4
    assert (samples.forwards[~success] == 775).all()
    assert samples.forwards[success].double().mean() < 775 / 3  # foolbox tries all on all
