"""Gradient penalty method (GPM, the VCL-HNU group): |dL/dx| over the calmest pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..fields import flag
from .base import Penalty

PAPER_BATCH = 256
PAPER_SIGMA = 0.226  # mean of the ImageNet channels' standard deviations .229, .224, .225


@dataclass(frozen=True)
class GPM(Penalty):
    """sum over p in S_i of (1/C) sum_c |dL_i/dx_i|, S_i the smallest `gpm_use_ratio` of pixels.

    Pixels are ranked per sample by the channel mean; the largest gradients are spared.

    The authors' code penalises the gradient of the batch-mean loss with respect to normalised
    inputs: per sample, 1/B of ours with respect to [0,1] times sigma. `gpm_lamb` keeps their
    meaning at their batch of 256 and ImageNet's sigma: the weight is gpm_lamb * 0.226/256, whatever
    the batch size here.
    """

    gpm_lamb: float = flag(
        0.0,
        "GPM: weight of the penalty, in the authors' units at batch 256 "
        "(per sample gpm_lamb * 0.226/256)",
        at_least=0,
    )
    gpm_use_ratio: float = flag(
        0.9, "GPM: share of pixels penalised, those of smallest gradient", above=0, at_most=1
    )
    tag: ClassVar[str] = "gpm"

    @property
    def weight(self) -> float:
        return self.gpm_lamb * PAPER_SIGMA / PAPER_BATCH

    def __call__(self, gradient: Tensor, x: Tensor) -> Tensor:
        per_pixel = gradient.abs().mean(1).flatten(1)
        count = round(self.gpm_use_ratio * per_pixel.shape[1])
        return per_pixel.topk(count, dim=1, largest=False).values.sum(1)
