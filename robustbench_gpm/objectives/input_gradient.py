"""Input-gradient norm (GradNorm: Rodriguez-Munoz et al., ECCV 2024, arXiv 2409.20139)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..fields import flag
from .base import Penalty


@dataclass(frozen=True)
class InputGradient(Penalty):
    """||dL_i/dx_i|| of each sample, over channels and pixels, in the l1 or the l2 norm.

    The weight is igr_lamb * igr_budget: to first order, budget * ||dL/dx||_1 is how much a linf
    perturbation of that budget raises the loss (and the l2 norm the same for an l2 perturbation),
    so igr_lamb weighs robust against clean loss. The paper writes lamb * budget/sigma for inputs
    normalised by sigma; for inputs in [0,1], as here, sigma cancels, and the paper's l_GN / l_CE =
    1.2 / 0.8 is igr_lamb = 1.5.
    """

    igr_lamb: float = flag(
        0.0, "input gradient: weight of the norm, in units of igr_budget", at_least=0
    )
    igr_norm: Literal["l1", "l2"] = flag("l1", "input gradient: norm of each sample's gradient")
    igr_budget: float = flag(
        4 / 255, "input gradient: perturbation whose first-order effect is penalised", above=0
    )
    tag: ClassVar[str] = "igr"

    @property
    def weight(self) -> float:
        return self.igr_lamb * self.igr_budget

    def __call__(self, gradient: Tensor, x: Tensor) -> Tensor:
        flat = gradient.flatten(1)
        if self.igr_norm == "l1":
            return flat.abs().sum(1)
        # The tiny term keeps the second derivative finite where the gradient is zero.
        return torch.sqrt(flat.square().sum(1) + 1e-24)
