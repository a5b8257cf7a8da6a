"""Adversarial weight perturbation (Wu et al. 2020, arXiv 2004.05884, equations 7 to 10)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor, nn

from ..core import Loss
from ..fields import flag
from .base import Around, Objective
from .weights import Gradients, add_to_grad, ratio, two_gradients


@dataclass(frozen=True)
class AdversarialWeights(Around):
    """Flags of adversarial weight perturbation; the paper has 0.01 for PGD and 0.005 for TRADES."""

    awp_gamma: float = flag(
        0.0,
        "adversarial weight perturbation: move of each layer's weights, in units of their norm; "
        "0 for none",
        at_least=0,
    )

    @property
    def active(self) -> bool:
        return self.awp_gamma > 0

    @property
    def label(self) -> str:
        return f"awp{self.awp_gamma:g}"

    def around(self, inner: Objective) -> Objective:
        return WeightPerturbed(self.awp_gamma, inner)


@dataclass(frozen=True)
class WeightPerturbed:
    """The gradient of `inner` at the weights w + gamma * ||w|| * g/||g||, layer by layer.

    g is its gradient at w, on the same images: stood around by adversarial training, those that
    were attacked, and of TRADES the whole loss. A layer is a parameter with `weight` in its name
    and more than one axis; biases and batch norms are left where they are.

    The norm's statistics are of the first pass, at the weights that the model keeps, and random
    draws are the same in both. (The authors' code draws anew, takes statistics of the second pass,
    and lets weight decay act on the perturbed weights.)
    """

    gamma: float
    inner: Objective

    def backward(self, model: nn.Module, x: Tensor, y: Tensor, loss: Loss) -> dict[str, Tensor]:
        """See `Objective.backward`; logs what the inner objective does at the weights w."""
        layers = [p for name, p in model.named_parameters() if "weight" in name and p.dim() > 1]

        def displace(gradients: Gradients) -> Gradients:
            return {
                p: self.gamma * p.detach().norm() * ratio(1.0, gradients[p].norm()) * gradients[p]
                for p in layers
                if p in gradients
            }

        _, perturbed, log = two_gradients(self.inner, model, x, y, loss, displace)
        add_to_grad(perturbed)
        return log

    def at(self, epoch: float) -> WeightPerturbed:
        return replace(self, inner=self.inner.at(epoch))
