"""Spatially transformed adversarial examples as first published: L-BFGS, one image at a time.

Xiao et al. 2018, arXiv 1801.02612; the optimiser's settings are those of the authors' code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import fmin_l_bfgs_b
from torch import Tensor, nn

from ..core import Loss, Samples
from ..deformation import identity_flow
from .priced import PricedFlow
from .smoothness import smoothness

Vector = npt.NDArray[np.float64]

FACTR, MEMORY = 10.0, 20  # the authors' stopping tolerance (times machine precision) and history


@dataclass(frozen=True)
class StAdvLBFGS(PricedFlow):
    """min over the flow of max(z_y - max_{i != y} z_i, -kappa) + tau * smoothness, to convergence.

    Starts at rest. A budget of infinity leaves the flow unbounded, as in the paper; a finite one
    bounds every displacement by it (the B of L-BFGS-B). With `over` = tau the budget is 1/tau in
    place of the field, and nothing bounds the flow. Of all flows tried that fool the model the
    one with the smallest objective is returned; where none does, the last. `evaluations` bounds the
    forward and backward passes spent on a sample (a line search under way may pass it by a few).
    """

    kappa: float = 0.0
    evaluations: int = 500

    @property
    def unbounded(self) -> bool:
        return self.over == "bound"

    def deform(
        self, model: nn.Module, x: Tensor, y: Tensor, budget: float, loss: Loss, samples: Samples
    ) -> Tensor:
        flow = identity_flow(x)
        if budget == 0:
            return flow
        for i in range(len(x)):
            one = slice(i, i + 1)
            part = samples.select(torch.tensor([i]))
            flow[one] = self._optimised(model, x[one], y[one], budget, loss, part)
        return flow

    def _optimised(
        self, model: nn.Module, x: Tensor, y: Tensor, budget: float, loss: Loss, samples: Samples
    ) -> Tensor:
        bound, tau = self.terms(budget)
        best: dict[str, Any] = {"value": math.inf, "flow": None}

        def objective(vector: Vector) -> tuple[float, Vector]:
            flow = _flow_of(vector, x).requires_grad_()
            leads, fooled = loss.judged(model, self.render(x, flow), y)
            total = -leads.clamp_max(self.kappa).sum()
            total = total + tau * smoothness(flow, self.neighbours).sum()
            (gradient,) = torch.autograd.grad(total, flow)
            samples.book(forwards=1, backwards=1)
            value = float(total.detach())
            if bool(fooled) and value < best["value"]:
                best.update(value=value, flow=flow.detach())
            return value, gradient.nan_to_num().flatten().cpu().numpy().astype(np.float64)

        start = np.zeros(2 * x[0, 0].numel())
        bounds = [(-bound, bound)] * len(start) if math.isfinite(bound) else None
        last, _, _ = fmin_l_bfgs_b(
            objective,
            start,
            bounds=bounds,
            factr=FACTR,
            m=MEMORY,
            maxfun=self.evaluations,
            maxiter=self.evaluations,
        )
        found: Tensor = _flow_of(last, x) if best["flow"] is None else best["flow"]
        return found


def _flow_of(vector: Vector, x: Tensor) -> Tensor:
    return torch.from_numpy(vector).to(x).view(1, 2, *x.shape[2:])
