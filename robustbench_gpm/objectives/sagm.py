"""Sharpness-aware gradient matching (SAGM: Wang et al., CVPR 2023, arXiv 2303.10353)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor, nn

from ..core import Loss
from ..fields import flag
from .base import Around, Objective
from .weights import Gradients, accumulate, add_to_grad, global_norm, ratio, two_gradients


@dataclass(frozen=True)
class SAGMOptions(Around):
    """Flags of SAGM; the authors of GPM compare with rho 0.05 and alpha 0.001."""

    sagm_rho: float = flag(
        0.0, "SAGM: l2 size of the weights' perturbation (0.05 is usual); 0 for none", at_least=0
    )
    sagm_alpha: float = flag(
        0.001, "SAGM: size, in gradients, of the step down that the perturbation takes", at_least=0
    )

    @property
    def active(self) -> bool:
        return self.sagm_rho > 0

    @property
    def label(self) -> str:
        return f"sagm{self.sagm_rho:g}"

    def around(self, inner: Objective) -> Objective:
        return SAGM(self.sagm_rho, self.sagm_alpha, inner)


@dataclass(frozen=True)
class SAGM:
    """(g + g')/2: g the gradient of `inner`, g' that at weights w + (rho/||g|| - alpha) g.

    It lowers L(w) + L_p(w - alpha g), L_p the loss at perturbed weights; to lower L_p a step
    further down is to align the two gradients. The half is that of the authors' code.
    """

    rho: float
    alpha: float
    inner: Objective

    def at(self, epoch: float) -> SAGM:
        """See `Objective.at`."""
        return replace(self, inner=self.inner.at(epoch))

    def backward(self, model: nn.Module, x: Tensor, y: Tensor, loss: Loss) -> dict[str, Tensor]:
        """See `Objective.backward`; logs what `inner` logs at the weights, and ||g||."""
        here, there, log = two_gradients(self.inner, model, x, y, loss, self._displacements)
        gradient: Gradients = {}
        accumulate(gradient, here, 0.5)
        accumulate(gradient, there, 0.5)
        add_to_grad(gradient)
        return log

    def _displacements(self, gradient: Gradients) -> Gradients:
        factor = ratio(self.rho, global_norm(gradient)) - self.alpha
        return {p: factor * g for p, g in gradient.items()}
