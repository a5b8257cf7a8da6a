"""What the checks ask of a model with one pass; each sample for itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..attacks.base import attacking
from ..core import Loss, Samples

FLAT = 1e-30  # a gradient this small comes from a loss that is flat in float32


def no_gradient(model: nn.Module, x: Tensor, y: Tensor, loss: Loss, samples: Samples) -> Tensor:
    """Which images (B,) have no gradient of the loss to follow: all zero, or not finite."""
    with attacking(model):
        place = x.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(model, place, y).sum(), place)
    samples.book(forwards=1, backwards=1)
    flat = gradient.flatten(1)
    return (flat.abs().amax(1) <= FLAT) | ~flat.isfinite().all(1)
