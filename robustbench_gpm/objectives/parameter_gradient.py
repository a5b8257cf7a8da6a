"""Parameter-gradient-norm penalty (GNP), and sharpness-aware minimisation (SAM) with it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor, nn

from ..core import Loss, UserError
from ..fields import flag
from .accumulated import in_groups
from .base import Around, Objective
from .weights import Gradients, accumulate, add_to_grad, global_norm, ratio, two_gradients

ADAPTIVE_OFFSET = 0.01  # ASAM's eta: a weight of 0 may move too


@dataclass(frozen=True)
class GNPOptions(Around):
    """Flags of GNP and of SAM, which is GNP at an alpha of 1."""

    gnp_alpha: float = flag(
        0.0,
        "GNP: weight of the gradient at the perturbed weights, lambda / gnp_r for a penalty of "
        "lambda * ||dL/dweights||; 0 for none, 1 is SAM",
        at_least=0,
    )
    gnp_r: float = flag(0.1, "GNP: l2 size of the weights' perturbation", above=0)
    sam_rho: float = flag(0.0, "SAM: l2 size of the weights' perturbation; 0 for none", at_least=0)
    adaptive_sharpness: bool = flag(
        False, "GNP and SAM: perturb each weight in proportion to its own size (ASAM)"
    )
    m_sharpness: int | None = flag(
        None,
        "GNP and SAM: perturb the weights for each group of so many images of a batch by its own "
        "gradient; by default for the batch as a whole",
        at_least=1,
    )

    def __post_init__(self) -> None:
        """Raise UserError for what cannot be meant."""
        super().__post_init__()
        if self.gnp_alpha > 0 and self.sam_rho > 0:
            raise UserError(
                "--gnp_alpha and --sam_rho exclude each other: SAM is --gnp_alpha 1 with "
                "--gnp_r its rho, so leave one out"
            )
        if not self.active and (self.adaptive_sharpness or self.m_sharpness is not None):
            raise UserError("--adaptive_sharpness and --m_sharpness need --gnp_alpha or --sam_rho")

    @property
    def active(self) -> bool:
        return self.gnp_alpha > 0 or self.sam_rho > 0

    @property
    def label(self) -> str:
        name = f"sam{self.sam_rho:g}" if self.sam_rho > 0 else f"gnp{self.gnp_alpha:g}"
        radius = "" if self.sam_rho > 0 else f"r{self.gnp_r:g}"
        group = "" if self.m_sharpness is None else f"m{self.m_sharpness}"
        return f"{'a' if self.adaptive_sharpness else ''}{name}{radius}{group}"

    def around(self, inner: Objective) -> Objective:
        alpha, r = (1.0, self.sam_rho) if self.sam_rho > 0 else (self.gnp_alpha, self.gnp_r)
        return GNP(alpha, r, inner, self.adaptive_sharpness, self.m_sharpness)


@dataclass(frozen=True)
class GNP:
    """(1-alpha) g1 + alpha g2: g1 the gradient of `inner`, g2 that at weights w + r g1/||g1||.

    GNP (Zhao et al., ICML 2022, arXiv 2202.03599): with alpha = lambda/r this is the gradient of
    L + lambda ||dL/dw|| up to O(r), as (g2 - g1)/r tends to the Hessian times g1/||g1||. alpha = 0
    is `inner` itself, in one pass, and alpha = 1 is SAM (Foret et al. 2021, arXiv 2010.01412) with
    rho = r. g1 enters the mixture as it is, by the paper's formula, where the authors' code
    normalises it.

    adaptive: ASAM (Kwon et al. 2021, arXiv 2102.11600): the weights move by r T^2 g1/||T g1||,
    T = |w| + 0.01 for every parameter (the authors' code leaves biases unscaled, T = 1).
    group: the m of SAM's m-sharpness: each group of so many images, in order, goes through this by
    itself, batch norms included; the gradients, and what is logged, are averaged by the groups'
    sizes, as the last may be smaller.
    """

    alpha: float
    r: float
    inner: Objective
    adaptive: bool = False
    group: int | None = None

    def at(self, epoch: float) -> GNP:
        """See `Objective.at`."""
        return replace(self, inner=self.inner.at(epoch))

    def backward(self, model: nn.Module, x: Tensor, y: Tensor, loss: Loss) -> dict[str, Tensor]:
        """See `Objective.backward`; logs what `inner` logs at the weights, and ||g1||."""
        if self.alpha == 0:
            return self.inner.backward(model, x, y, loss)
        gradient: Gradients = {}
        log: dict[str, Tensor] = {}
        for images, labels, share in in_groups(x, y, self.group or len(x)):
            here, there, seen = two_gradients(
                self.inner, model, images, labels, loss, self._displacements
            )
            mixed: Gradients = {}
            accumulate(mixed, here, 1 - self.alpha)
            accumulate(mixed, there, self.alpha)
            accumulate(gradient, mixed, share)
            accumulate(log, seen, share)
        add_to_grad(gradient)
        return log

    def _displacements(self, gradient: Gradients) -> Gradients:
        scaled = _by_own_size(gradient) if self.adaptive else gradient
        factor = ratio(self.r, global_norm(scaled))
        direction = _by_own_size(scaled) if self.adaptive else scaled
        return {p: factor * d for p, d in direction.items()}


def _by_own_size(gradient: Gradients) -> Gradients:
    return {p: (p.detach().abs() + ADAPTIVE_OFFSET) * g for p, g in gradient.items()}
