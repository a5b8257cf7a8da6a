"""Threat models: what a budget measures, in which unit, and how it is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..core import Table, UserError
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
        if self.unit == "share":
            return f"{budget:.4g}x"
        if self.unit == "1/tau":
            return f"tau {1 / budget:.4g}"
        return f"{budget:.4g} px" if self.unit == "pixels" else f"{budget:.4g}"

    def read(self, text: str, what: str = "the budget") -> float:
        """A budget as people write it: 0.5, 8/255; `what` is how complaints call it.

        Raises UserError for what is none.
        """
        numerator, _, denominator = text.partition("/")
        try:
            budget = float(numerator) / float(denominator or 1)
        except (ValueError, ZeroDivisionError):
            raise UserError(f"{what} {text} is not a number such as 0.5 or 8/255") from None
        if not 0 < budget <= self.largest or budget == float("inf"):
            hint = ": write 8/255 for eight grey levels" if self.largest == 1 else ""
            most = f" and at most {self.largest:g}" if self.largest == 1 else ""
            raise UserError(
                f"{what} {text} must be above 0{most} ({self.unit} for {self.name}){hint}"
            )
        return budget


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


# What smoothness is worth instead of how far pixels move: no size of a flow, a price. 20 is the
# 0.05 of the paper that made tau.
_PRICES = (0.2, 1.0, 5.0, 20.0, 100.0, 500.0, 2500.0)
TAU = Threat("tau", "1/tau", _PRICES, float("inf"), lambda flow: flow.flatten(1).amax(1) * 0)


def _parts_own(_: Tensor) -> Tensor:
    raise TypeError("only the attack knows what share of its parts' budgets a perturbation takes")


_SHARES = (0.125, 0.25, 0.5, 0.75, 1.0)
UNION = Threat("union", "share", _SHARES, float("inf"), _parts_own)
COMPOSED = replace(UNION, name="composed")

THREATS: Table[Threat] = Table(
    "threat model", {t.name: t for t in (LINF, L2, L1, L0, FLOW, FLOW_L2)}
)
