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
    """A norm of dL_i/dx_i, x in [0,1], of each sample, over channels and pixels.

    l1 and l2: the weight is igr_lamb * igr_budget. To first order, budget * ||dL/dx||_1 is how much
    a linf perturbation of that budget raises the loss, and budget * ||dL/dx||_2 an l2 one, so
    igr_lamb weighs robust against clean loss. The paper writes lamb * budget/sigma for inputs
    normalised by sigma; for inputs in [0,1], as here, sigma cancels, and the paper's l_GN / l_CE =
    1.2 / 0.8 is igr_lamb = 1.5.

    l2sq: the squared l2 norm, and the weight is igr_lamb * igr_budget^2: the square of that rise.
    At igr_budget 1, igr_lamb is the lambda of Ross & Doshi-Velez (AAAI 2018, arXiv 1711.09404) for
    inputs in [0,1] and each sample's own gradient.

    `igr_ramp` epochs long the weight rises linearly from 0; the paper's is 5. Labels may be soft.
    """

    igr_lamb: float = flag(
        0.0,
        "input gradient: weight of the norm, in units of igr_budget (of its square for l2sq)",
        at_least=0,
    )
    igr_norm: Literal["l1", "l2", "l2sq"] = flag(
        "l1", "input gradient: norm of each sample's gradient; l2sq is the squared l2 norm"
    )
    igr_budget: float = flag(
        4 / 255, "input gradient: perturbation whose first-order effect is penalised", above=0
    )
    igr_ramp: float = flag(
        0.0,
        "input gradient: first epochs in which the weight rises from 0; GradNorm has 5",
        at_least=0,
    )
    tag: ClassVar[str] = "igr"

    @property
    def weight(self) -> float:
        return self.igr_lamb * self.igr_budget ** (2 if self.igr_norm == "l2sq" else 1)

    @property
    def ramp_epochs(self) -> float:
        return self.igr_ramp

    def __call__(self, gradient: Tensor, x: Tensor) -> Tensor:
        flat = gradient.flatten(1)
        if self.igr_norm == "l1":
            return flat.abs().sum(1)
        squares = flat.square().sum(1)
        # The tiny term keeps the second derivative finite where the gradient is zero.
        return squares if self.igr_norm == "l2sq" else torch.sqrt(squares + 1e-24)
