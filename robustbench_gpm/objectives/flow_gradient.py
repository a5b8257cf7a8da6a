"""Flow-gradient regularisation (Xia & Li, Neurocomputing 2021, arXiv 2008.12997)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..deformation import pull_back, to_pixels, warp
from ..fields import flag
from .base import Penalty

PAPER_BATCH = 128


@dataclass(frozen=True)
class FlowGradient(Penalty):
    """sum over (h,w,2) of (dL_i/dflow_i)^2 at zero flow, the flow in [-1,1] coordinates.

    The paper's code penalises the gradient of the batch-mean loss, which is 1/B of each sample's
    own: its lambda of 300 at B = 128 weighs 300/128^2 per sample. `fgr_lamb` keeps that meaning at
    every batch size: the weight is fgr_lamb/128^2.

    The derivative with respect to the flow at a pixel centre is the image's central difference
    (deformation.py says why), so the chain rule gives it from the input gradient without a warp.

    `rs_sigma` is the paper's random start: the images are first resampled by a flow drawn from
    N(0, rs_sigma), in [-1,1] coordinates (0.01 is 0.155 px at 32 px), and loss and penalty are both
    taken there. 0 switches it off.
    """

    fgr_lamb: float = flag(
        0.0,
        "flow gradient: weight of the penalty, in the paper's units at batch 128 "
        "(per sample fgr_lamb/128^2)",
        at_least=0,
    )
    rs_sigma: float = flag(
        0.01,
        "flow gradient: standard deviation, in [-1,1] coordinates, of the random flow that "
        "resamples the images first; 0 for none",
        at_least=0,
    )
    tag: ClassVar[str] = "fgr"

    @property
    def weight(self) -> float:
        return self.fgr_lamb / PAPER_BATCH**2

    def __call__(self, gradient: Tensor, x: Tensor) -> Tensor:
        return (pull_back(gradient, x) * _pixels_per_unit(x)).square().flatten(1).sum(1)

    @torch.no_grad()
    def prepare(self, x: Tensor) -> Tensor:
        if self.rs_sigma == 0:
            return x
        flow = torch.randn(len(x), 2, *x.shape[2:], dtype=x.dtype, device=x.device)
        return warp(x, self.rs_sigma * flow * _pixels_per_unit(x)).clamp(0, 1)


def _pixels_per_unit(x: Tensor) -> Tensor:
    """Pixels in one unit of [-1,1] coordinates, for (right, down): shape (2,1,1)."""
    height, width = x.shape[2:]
    return x.new_tensor([to_pixels(1, width), to_pixels(1, height)]).view(2, 1, 1)
