"""Threat models: what a budget measures, in which unit, and how it is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..core import Table
from ..deformation import max_displacement, root_mean_square


@dataclass(frozen=True)
class Threat:
    """A way to measure a perturbation.

    `size` gives (B,) sizes of perturbations (B,...): of the difference of two images for linf, l2,
    l1 and l0 (which counts changed values, each channel of a pixel for itself), of the flow for
    flow (the largest move along an axis) and flow-l2 (the root mean square of the moves).
    """

    name: str
    unit: str
    default_budgets: tuple[float, ...]
    largest: float
    size: Callable[[Tensor], Tensor]

    def label(self, budget: float) -> str:
        """The budget as people write it: 8/255, 0.5, 1.5 px."""
        if self.name == "linf":
            return f"{budget * 255:.4g}/255"
        return f"{budget:.4g} px" if self.unit == "pixels" else f"{budget:.4g}"


def _linf(perturbation: Tensor) -> Tensor:
    return perturbation.abs().flatten(1).amax(1)


def _l2(perturbation: Tensor) -> Tensor:
    size: Tensor = torch.linalg.vector_norm(perturbation.flatten(1), dim=1)
    return size


def _l1(perturbation: Tensor) -> Tensor:
    return perturbation.abs().flatten(1).sum(1)


def _l0(perturbation: Tensor) -> Tensor:
    return (perturbation != 0).flatten(1).sum(1).to(perturbation.dtype)


LINF = Threat("linf", "image units", tuple(n / 255 for n in (1, 2, 4, 8, 16, 32)), 1.0, _linf)
L2 = Threat("l2", "image units", (0.125, 0.25, 0.5, 1.0, 2.0, 4.0), float("inf"), _l2)
L1 = Threat("l1", "image units", (1.5, 3.0, 6.0, 12.0, 24.0, 48.0), float("inf"), _l1)
L0 = Threat("l0", "values", (1.0, 2.0, 5.0, 10.0, 20.0, 50.0), float("inf"), _l0)
FLOW = Threat("flow", "pixels", (0.05, 0.1, 0.2, 0.4, 0.8, 1.6), float("inf"), max_displacement)
FLOW_L2 = replace(FLOW, name="flow-l2", size=root_mean_square)

THREATS: Table[Threat] = Table(
    "threat model", {t.name: t for t in (LINF, L2, L1, L0, FLOW, FLOW_L2)}
)
