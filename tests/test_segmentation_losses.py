"""Losses on masks: closed forms, void, SegPGD's weights, and who counts as fooled."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from robustbench_gpm.core import UserError
from robustbench_gpm.masks import VOID
from robustbench_gpm.tasks.segmentation_losses import (
    SEGMENTATION_LOSSES,
    SegmentationLoss,
    SegPGD,
    masked_cross_entropy,
    pixel_cross_entropy,
    segpgd,
)

LOSSES = [pixel_cross_entropy, masked_cross_entropy, SegPGD("segpgd", wrong=0.3)]


class Given(nn.Module):
    """Logits whatever the image."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, x: Tensor) -> Tensor:
        return self.logits


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(4, 5, 6, 7, generator=generator, dtype=torch.double)
    y = torch.randint(0, 5, (4, 6, 7), generator=generator)
    y[0, :2], y[2] = VOID, VOID
    y[3] = logits[3].argmax(0)
    return logits, y


def of(loss: SegmentationLoss, logits: Tensor, y: Tensor) -> Tensor:
    return loss(Given(logits), torch.zeros(len(y)), y)


def pixel_by_pixel(logits: Tensor, y: Tensor, right: float, wrong: float) -> list[float]:
    """Each sample's loss by its definition, with those weights of right and of wrong pixels."""
    found = []
    for scores, mask in zip(logits, y, strict=True):
        terms = []
        for row in range(mask.shape[0]):
            for column in range(mask.shape[1]):
                label = int(mask[row, column])
                if label == VOID:
                    continue
                values = scores[:, row, column].tolist()
                term = math.log(sum(math.exp(v) for v in values)) - values[label]
                terms.append((right if values[label] == max(values) else wrong) * term)
        found.append(sum(terms) / len(terms) if terms else 0.0)
    return found


@pytest.mark.parametrize(
    ("loss", "right", "wrong"), list(zip(LOSSES, (1, 1, 0.7), (1, 0, 0.3), strict=True))
)
def test_values_are_the_definition_s(loss: SegmentationLoss, right: float, wrong: float) -> None:
    logits, y = batch()
    found = of(loss, logits, y).tolist()
    assert found == pytest.approx(pixel_by_pixel(logits, y, right, wrong))
    assert found[2] == 0


def test_without_void_it_is_torch_s_mean() -> None:
    logits, y = batch()
    expected = nn.functional.cross_entropy(logits[1:2], y[1:2])
    torch.testing.assert_close(of(pixel_cross_entropy, logits, y)[1], expected)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_void_pixels_have_no_gradient_and_samples_are_their_own(loss: SegmentationLoss) -> None:
    logits, y = batch()
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(of(loss, logits, y)[0], logits)
    assert (gradient[1:] == 0).all()
    assert (gradient[0, :, :2] == 0).all()
    assert (gradient[0, :, 2:] != 0).any()


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_losses_are_twice_differentiable(loss: SegmentationLoss) -> None:
    logits, y = batch()
    logits = logits[:2, :, :3, :2].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: of(loss, v, y[:2, :3, :2]), logits)
    assert torch.autograd.gradgradcheck(lambda v: of(loss, v, y[:2, :3, :2]), logits)


def test_segpgd_goes_from_right_pixels_alone_to_all_alike() -> None:
    logits, y = batch()
    assert [segpgd.at(t, 10).wrong for t in (1, 6, 10)] == [0, 0.25, 0.45]
    whole = of(SegPGD("segpgd", wrong=0.5), logits, y)
    torch.testing.assert_close(2 * whole, of(pixel_cross_entropy, logits, y))


def test_wrong_pixels_weigh_nothing_at_first() -> None:
    logits, y = batch()
    logits = logits[:2].requires_grad_()
    (gradient,) = torch.autograd.grad(of(segpgd, logits, y[:2]).sum(), logits)
    right = logits.argmax(1) == y[:2]
    assert (gradient.abs().sum(1) > 0)[right].all()
    assert (gradient.movedim(1, -1)[~right] == 0).all()


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_a_sample_is_fooled_where_under_half_of_its_pixels_are_right(
    loss: SegmentationLoss,
) -> None:
    y = torch.zeros(4, 2, 5, dtype=torch.long)
    y[:, 1] = VOID
    y[3] = VOID
    logits = torch.zeros(4, 2, 2, 5)
    logits[:, 0] = 1
    logits[:, 1, 1] = 2  # on void pixels, whose class is nobody's business
    logits[1, 1, 0, :2] = 2  # 3 of 5 are right
    logits[2, 1, 0, :3] = 2  # 2 of 5 are right
    values, fooled = loss.judged(Given(logits), torch.zeros(4), y)
    assert fooled.tolist() == [False, False, True, False]
    torch.testing.assert_close(values, of(loss, logits, y))


def test_the_threshold_is_a_field() -> None:
    y = torch.zeros(1, 1, 4, dtype=torch.long)
    logits = torch.tensor([[[[1.0, 1, 1, 0]], [[0.0, 0, 0, 1]]]])
    for threshold, fooled in ((0.75, False), (0.8, True), (1.0, True)):
        loss = SegmentationLoss("cross_entropy", fooled_below=threshold)
        assert loss.judged(Given(logits), torch.zeros(1), y)[1].tolist() == [fooled]


def test_numbers_out_of_range_are_refused() -> None:
    for threshold in (0, 1.1, math.nan):
        with pytest.raises(UserError, match="must be above 0 and at most 1"):
            SegmentationLoss("cross_entropy", threshold)
    for wrong in (-0.1, 0.6, math.nan):
        with pytest.raises(UserError, match=r"must be in \[0, 0.5\]"):
            SegPGD("segpgd", wrong=wrong)


def test_the_table() -> None:
    assert SEGMENTATION_LOSSES["cross_entropy"] is pixel_cross_entropy
    assert SEGMENTATION_LOSSES["masked_cross_entropy"] is masked_cross_entropy
    assert set(SEGMENTATION_LOSSES) == {"cross_entropy", "masked_cross_entropy", "segpgd"}
