"""Gradient penalty method (GPM, the VCL-HNU group): |dL/dx| over the calmest pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..core import UserError
from ..fields import flag
from .base import Penalty

PAPER_BATCH = 256
PAPER_SIGMA = 0.226  # mean of the ImageNet channels' standard deviations .229, .224, .225
QUANTILE_SAMPLE = 2**20  # numbers that a quantile is taken of, at most


@dataclass(frozen=True)
class GPM(Penalty):
    """sum over p in S_i of (1/C) sum_c |dL_i/dx_i|, S_i the smallest `gpm_use_ratio` of pixels.

    Pixels are ranked per sample by the channel mean; the largest gradients are spared. Of n pixels
    the smallest floor(gpm_use_ratio * n) count, as in the authors' code, and at least one.

    The authors' code penalises the gradient of the batch-mean loss with respect to normalised
    inputs: per sample, 1/B of ours with respect to [0,1] times sigma. `gpm_lamb` keeps their
    meaning at their batch of 256 and ImageNet's sigma: the weight is gpm_lamb * 0.226/256, whatever
    the batch size here.

    `gpm_after` epochs go without the penalty, and over the `gpm_warmup` next its weight rises
    linearly from 0 (the authors' after_iter and warmup_iter, there in batches, both 0).

    The second-order gradient is what the weighted penalty alone adds to the parameters' gradient,
    the batch's mean, before the loss's own is added. What is not finite in it counts as 0. With
    `gpm_clip_ratio` LOW HIGH its absolute values are taken over all parameters together, the finite
    ones only, and their two quantiles: what is smaller than the first becomes 0, and what is larger
    than the second is cut back to it, sign kept, or becomes 0 with `gpm_clip_to_zero`. 0 1 is off.
    Over 2^20 numbers, the quantiles are of an evenly spaced part. Clipping is of a batch's mean,
    and so, unlike all else here, depends on what shares the batch.
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
    gpm_after: float = flag(0.0, "GPM: epochs at the start without the penalty", at_least=0)
    gpm_warmup: float = flag(
        0.0, "GPM: epochs, after those, in which the weight rises from 0", at_least=0
    )
    gpm_clip_ratio: tuple[float, ...] = flag(
        (0.0, 1.0),
        "GPM: clip the penalty's gradient in the weights to these two quantiles of its absolute "
        "values; 0 1 for none",
        at_least=0,
        at_most=1,
    )
    gpm_clip_to_zero: bool = flag(
        False, "GPM: what is above the upper quantile becomes 0, instead of the quantile"
    )
    tag: ClassVar[str] = "gpm"

    def __post_init__(self) -> None:
        """Raise UserError for what cannot be meant."""
        super().__post_init__()
        if len(self.gpm_clip_ratio) != 2 or self.gpm_clip_ratio[0] > self.gpm_clip_ratio[1]:
            raise UserError("--gpm_clip_ratio needs two numbers, the smaller first, such as 0 0.99")

    @property
    def weight(self) -> float:
        return self.gpm_lamb * PAPER_SIGMA / PAPER_BATCH

    @property
    def quiet_epochs(self) -> float:
        return self.gpm_after

    @property
    def ramp_epochs(self) -> float:
        return self.gpm_warmup

    def __call__(self, gradient: Tensor, x: Tensor) -> Tensor:
        per_pixel = gradient.abs().mean(1).flatten(1)
        count = max(1, int(self.gpm_use_ratio * per_pixel.shape[1]))
        return per_pixel.topk(count, dim=1, largest=False).values.sum(1)

    @property
    def edits(self) -> Literal["never", "non_finite", "always"]:
        return "non_finite" if tuple(self.gpm_clip_ratio) == (0, 1) else "always"

    def edited(self, gradients: list[Tensor]) -> list[Tensor]:
        finite = [torch.nan_to_num(g, 0.0, 0.0, 0.0) for g in gradients]
        sizes = torch.cat([g[g.isfinite()].abs() for g in gradients]) if gradients else None
        if self.edits != "always" or sizes is None or len(sizes) == 0:
            return finite
        evenly = sizes[:: -(-len(sizes) // QUANTILE_SAMPLE)]
        low, high = torch.quantile(evenly, evenly.new_tensor(self.gpm_clip_ratio))
        return [self._clipped(g, low, high) for g in finite]

    def _clipped(self, gradient: Tensor, low: Tensor, high: Tensor) -> Tensor:
        size = gradient.abs()
        limited = gradient.clamp(-high, high)
        if self.gpm_clip_to_zero:
            limited = gradient.masked_fill(size > high, 0.0)
        return limited.masked_fill(size < low, 0.0)
