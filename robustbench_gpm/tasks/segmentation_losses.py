"""Losses on logits (B,K,H,W) and masks (B,H,W), one number a sample.

The mean is over the pixels that have a class; where no pixel has, the loss is 0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..core import Loss, Table, UserError
from ..masks import VOID

FOOLED_BELOW = 0.5


@dataclass(frozen=True)
class SegmentationLoss:
    """A `core.Loss`: the cross-entropy of each sample's pixels, weighted, and its mean over them.

    A sample counts as fooled where less than `fooled_below` of its pixels are given their class:
    half of them, unless told otherwise. One without such pixels is never fooled.
    """

    name: str
    fooled_below: float = FOOLED_BELOW

    def __post_init__(self) -> None:
        """Raise UserError for a share of pixels that is none."""
        if not 0 < self.fooled_below <= 1:
            raise UserError(
                "the pixel accuracy below which an image counts as fooled must be above 0 and at "
                f"most 1, not {self.fooled_below}"
            )

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Losses (B,) of images x (B,C,H,W) with masks y (B,H,W)."""
        return self.score(model(x), y)

    def judged(self, model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The same, and which samples are fooled (B,)."""
        logits = model(x)
        return self.score(logits, y), pixel_accuracy_of(logits.detach(), y) < self.fooled_below

    def score(self, logits: Tensor, y: Tensor) -> Tensor:
        """Losses (B,) of logits (B,K,H,W)."""
        return pixel_mean(cross_entropy_of(logits, y) * self.weights(logits, y), y)

    def weights(self, logits: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002 - others look at them
        """How much each pixel counts, (B,H,W); here every one the same."""
        return torch.ones_like(logits[:, 0])


@dataclass(frozen=True)
class RightBeforeWrong(SegmentationLoss):
    """Pixels that are still right weigh 1 - `wrong`, those that are wrong `wrong`, in [0, 0.5].

    At 0 only the right ones count: an attack spends nothing on pixels that are wrong already
    (masked cross-entropy, Croce et al. 2023, arXiv 2306.12941). At 0.5 it is half the
    cross-entropy.
    """

    wrong: float = 0.0

    def __post_init__(self) -> None:
        """Raise UserError for a weight outside its range."""
        super().__post_init__()
        if not 0 <= self.wrong <= 0.5:
            raise UserError(f"the weight of wrong pixels must be in [0, 0.5], not {self.wrong}")

    def weights(self, logits: Tensor, y: Tensor) -> Tensor:
        """1 - `wrong` where a pixel is right, `wrong` where not; constants, no gradients."""
        right = logits.detach().argmax(1) == y
        light = torch.full_like(logits[:, 0].detach(), self.wrong)
        return torch.where(right, 1 - light, light)


@dataclass(frozen=True)
class SegPGD(RightBeforeWrong):
    """SegPGD's loss (Gu et al. 2022, arXiv 2207.12391), which changes from step to step.

    `wrong` is lambda there: 0 at first, when only right pixels count, and nearly 0.5 in the end,
    when all count alike.
    """

    def at(self, step: int, steps: int) -> SegPGD:
        """That of step t = 1..T of an attack: lambda = (t - 1) / 2T."""
        return replace(self, wrong=(step - 1) / (2 * steps))


def cross_entropy_of(logits: Tensor, y: Tensor) -> Tensor:
    """-log softmax(logits)[y] of each pixel, shape (B,H,W), and 0 where it is void."""
    return nn.functional.cross_entropy(logits, y, ignore_index=VOID, reduction="none")


def pixel_mean(values: Tensor, y: Tensor) -> Tensor:
    """The mean (B,) of values (B,H,W), which are 0 on void pixels, over the others."""
    counted = (y != VOID).flatten(1).sum(1).clamp_min(1)
    return values.flatten(1).sum(1) / counted


def pixel_accuracy_of(logits: Tensor, y: Tensor) -> Tensor:
    """The share (B,) of a sample's pixels that are given their class; 1 where all are void."""
    counted = (y != VOID).flatten(1).sum(1)
    right = (logits.argmax(1) == y).flatten(1).sum(1)
    return torch.where(counted > 0, right / counted.clamp_min(1), 1.0)


pixel_cross_entropy = SegmentationLoss("cross_entropy")
masked_cross_entropy = RightBeforeWrong("masked_cross_entropy")
segpgd = SegPGD("segpgd")

SEGMENTATION_LOSSES: Table[Loss] = Table(
    "segmentation loss",
    {loss.name: loss for loss in (pixel_cross_entropy, masked_cross_entropy, segpgd)},
)
