"""Short attacks that only ask whether a longer one could be trusted; each sample for itself."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..attacks.base import attacking
from ..attacks.geometry import project, steepest
from ..core import Loss, Samples

FLAT = 1e-30  # a gradient this small comes from a loss that is flat in float32

SMOOTH_STEPS, SMOOTH_DRAWS, SMOOTH_STEP = 10, 6, 0.25


def judged(
    model: nn.Module, x: Tensor, y: Tensor, loss: Loss, samples: Samples
) -> tuple[Tensor, Tensor]:
    """Losses (B,) and who is fooled (B,), from one forward pass that is booked."""
    with torch.no_grad():
        verdict = loss.judged(model, x, y)
    samples.book(forwards=1)
    return verdict


def no_gradient(model: nn.Module, x: Tensor, y: Tensor, loss: Loss, samples: Samples) -> Tensor:
    """Which images (B,) have no gradient of the loss to follow: all zero, or not finite."""
    with attacking(model):
        place = x.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(model, place, y).sum(), place)
    samples.book(forwards=1, backwards=1)
    flat = gradient.flatten(1)
    return (flat.abs().amax(1) <= FLAT) | ~flat.isfinite().all(1)


def smoothed(
    model: nn.Module, x: Tensor, y: Tensor, budget: float, norm: str, loss: Loss, samples: Samples
) -> Tensor:
    """Who is fooled (B,) by images made on a smooth surrogate: the model averaged over noise.

    Ten steps of a quarter of the budget along the average of six gradients, each at another
    point about the current one (Athalye et al. 2018, arXiv 1802.00420, section 4.2, with noise for
    the transformation). The noise is uniform (linf) or normal (l2), of half the budget's size.
    """
    hit = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    rows, adversarial = torch.arange(len(x), device=x.device), x.clone()
    for _ in range(SMOOTH_STEPS):
        gradient = torch.zeros_like(x)
        for _ in range(SMOOTH_DRAWS):
            noise = _noise(x, budget, norm, samples)
            gradient += _gradient(model, (adversarial + noise).clamp(0, 1), y, loss)
            samples.book(forwards=1, backwards=1)
        step = SMOOTH_STEP * budget * steepest(gradient, norm)
        adversarial = project(x, adversarial + step, budget, norm)
        _, fooled = judged(model, adversarial, y, loss, samples)
        hit[rows[fooled]] = True
        keep = ~fooled
        rows, samples = rows[keep], samples.select(keep)
        x, y, adversarial = x[keep], y[keep], adversarial[keep]
        if len(rows) == 0:
            break
    return hit


def _gradient(model: nn.Module, x: Tensor, y: Tensor, loss: Loss) -> Tensor:
    with attacking(model):
        place = x.detach().clone().requires_grad_()
        gradients: tuple[Tensor, ...] = torch.autograd.grad(loss(model, place, y).sum(), place)
    return gradients[0].nan_to_num()


def _noise(x: Tensor, budget: float, norm: str, samples: Samples) -> Tensor:
    if norm == "linf":
        return budget / 2 * samples.uniform(x)
    return budget / 2 * samples.normal(x) / math.sqrt(x[0].numel())
