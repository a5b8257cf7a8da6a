"""Losses that change from step to step, and SegPGD, against the formulas of its paper."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from test_graded import Brightness
from torch import Tensor, nn

from robustbench_gpm.attacks import ATTACKS, Attack
from robustbench_gpm.attacks.fgsm import FGSM
from robustbench_gpm.attacks.pgd import PGD
from robustbench_gpm.core import Loss, Samples, Scheduled, loss_at
from robustbench_gpm.graded.evaluator import NeverEnough
from robustbench_gpm.masks import VOID
from robustbench_gpm.tasks.segmentation_losses import (
    SEGMENTATION_LOSSES,
    pixel_accuracy_of,
    pixel_cross_entropy,
    segpgd,
)

BUDGET = 0.1


@dataclass(frozen=True)
class Asked:
    """A loss that notes at which steps it is asked."""

    asked: list[tuple[int, int]] = field(default_factory=list)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return pixel_cross_entropy(model, x, y)

    def judged(self, model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return pixel_cross_entropy.judged(model, x, y)

    def at(self, step: int, steps: int) -> Loss:
        self.asked.append((step, steps))
        return pixel_cross_entropy


def scenes() -> tuple[Tensor, Tensor]:
    x = torch.rand(3, 2, 6, 7, generator=torch.manual_seed(4), dtype=torch.float64)
    y = torch.randint(0, 3, (3, 6, 7), generator=torch.manual_seed(5))
    y[0, :2] = VOID
    return x, y


def a_segmenter() -> nn.Module:
    torch.manual_seed(6)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.Softplus(), nn.Conv2d(8, 3, 3, padding=1)
    ).double()


def named(name: str, **changes: Any) -> Attack:
    return replace(ATTACKS[name], **changes)


@pytest.mark.parametrize(
    ("attack", "expected"),
    [
        (FGSM(), [1]),
        (PGD(steps=4), [4]),
        (PGD(steps=3, restarts=2), [3, 3]),
        (named("segpgd", steps=5), [5]),
        (named("flow-pgd", steps=4), [4]),
        (named("flow-segpgd", steps=2), [2]),
        (named("flow-vertex", steps=3), [3]),
        (named("shared-pgd", steps=4), [4]),
        (named("flow-clip-pgd", steps=3), [3]),
        (named("smoothed-pgd", steps=4, draws=2), [4]),
        (named("stadv", steps=2, finish=3), [2, 3]),  # Adam, and then the steps of flow-vertex
    ],
)
def test_a_loss_is_asked_at_each_step_of_each_ascent(attack: Attack, expected: list[int]) -> None:
    loss = Asked()
    assert isinstance(loss, Scheduled)
    attack(a_segmenter(), *scenes(), budget=BUDGET, loss=NeverEnough(loss))
    assert loss.asked == [(t, steps) for steps in expected for t in range(1, steps + 1)]


def test_a_loss_without_a_schedule_is_itself_at_every_step() -> None:
    assert loss_at(pixel_cross_entropy, 2, 7) is pixel_cross_entropy
    assert loss_at(segpgd, 4, 6) == replace(segpgd, wrong=0.25)
    assert loss_at(NeverEnough(segpgd), 4, 6) == NeverEnough(replace(segpgd, wrong=0.25))


def by_the_paper(net: nn.Module, x: Tensor, y: Tensor, steps: int, size: float) -> Tensor:
    """Algorithm 1 of Gu et al. 2022, one image at a time, from the image itself."""
    found = []
    for image, mask in zip(x, y, strict=True):
        at = image
        for t in range(1, steps + 1):
            light = (t - 1) / (2 * steps)
            at = at.detach().requires_grad_()
            logits = net(at[None])[0]
            losses = torch.logsumexp(logits, 0) - logits.gather(0, mask.clamp(max=2)[None])[0]
            right = logits.argmax(0) == mask
            counted = mask != VOID
            total = (1 - light) * losses[right & counted].sum()
            total = total + light * losses[~right & counted].sum()
            (slope,) = torch.autograd.grad(total / mask.numel(), at)
            at = at + size * BUDGET * slope.sign()
            at = torch.minimum(torch.maximum(at, image - BUDGET), image + BUDGET).clamp(0, 1)
        found.append(at.detach())
    return torch.stack(found)


def test_segpgd_is_the_paper_s_algorithm() -> None:
    net, (x, y) = a_segmenter(), scenes()
    attack = named("segpgd", steps=7, random_start=False)
    loss = NeverEnough(SEGMENTATION_LOSSES[attack.loss_name])
    images = attack(net, x, y, budget=BUDGET, loss=loss)
    torch.testing.assert_close(images, by_the_paper(net, x, y, 7, attack.step_size))  # type: ignore[attr-defined]
    plain = attack(net, x, y, budget=BUDGET, loss=NeverEnough(pixel_cross_entropy))
    assert bool((images - plain).abs().flatten(1).amax(1).gt(0.01).all())


class TugOfWar(nn.Module):
    """Two classes by the image's mean: most pixels are 1 above .45, the last quarter below .2.

    At .5 the former are right by a little and the latter wrong by far, and to make these more so
    makes those right.
    """

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((1, 2, 3))[:, None, None].expand_as(x[:, 0])
        last = torch.arange(x.shape[3]) >= x.shape[3] * 3 // 4
        lead = 20 * torch.where(last, 0.2 - mean, mean - 0.45)
        return torch.stack((-lead / 2, lead / 2), 1)


@pytest.mark.parametrize("name", ["segpgd", "masked_cross_entropy"])
def test_nothing_is_spent_on_pixels_that_are_wrong_already(name: str) -> None:
    """Plain PGD makes wrong pixels more wrong, to the good of the others."""
    x = torch.full((1, 1, 4, 4), 0.5, dtype=torch.float64)
    y = torch.ones(1, 4, 4, dtype=torch.int64)
    net, attack = TugOfWar(), PGD(steps=8, random_start=False)
    accuracy = {}
    for loss in (pixel_cross_entropy, SEGMENTATION_LOSSES[name]):
        images = attack(net, x, y, budget=BUDGET, loss=NeverEnough(loss))
        accuracy[loss.name] = float(pixel_accuracy_of(net(images), y))  # type: ignore[attr-defined]
    assert float(pixel_accuracy_of(net(x), y)) == 0.75
    assert accuracy == {"cross_entropy": 0.75, name: 0.0}


def test_a_flow_follows_the_schedule_too() -> None:
    """For every sample the flow is another than where all pixels weigh the same."""
    net, (x, y) = a_segmenter(), scenes()
    flows = {}
    for name in ("flow-pgd", "flow-segpgd"):
        loss = NeverEnough(SEGMENTATION_LOSSES[named(name).loss_name])
        flows[name] = named(name, steps=6)(
            net, x, y, budget=0.5, loss=loss, samples=Samples(range(3))
        )
    assert bool((flows["flow-pgd"] - flows["flow-segpgd"]).abs().flatten(1).amax(1).gt(1e-3).all())


def test_brightness_is_turned_by_segpgd_as_far_as_by_pgd() -> None:
    """Where pixels do not share anything, each loss turns every pixel that can be turned."""
    x = torch.rand(2, 1, 5, 5, generator=torch.manual_seed(8))
    y = (x[:, 0] > 0.5).long()
    turned = {}
    for name in ("pgd", "segpgd"):
        loss = NeverEnough(SEGMENTATION_LOSSES[named(name).loss_name])
        images = named(name)(Brightness(), x, y, budget=0.2, loss=loss)
        turned[name] = Brightness()(images).argmax(1) != y
    assert torch.equal(turned["pgd"], (x[:, 0] - 0.5).abs() < 0.2)
    assert torch.equal(turned["segpgd"], turned["pgd"])
