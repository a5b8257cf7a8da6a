"""Balls of the threats: steepest directions, projections and random points, one sample a row.

Perturbations are (B,...); a radius is a number or one for each sample, shape (B,), in the unit of
the threat. `flow` bounds a flow (B,2,H,W) as linf does an image; `flow-l2` is its root mean square,
so that a radius of r pixels is an l2 ball of radius r * sqrt(H * W).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..core import Samples
from .threats import THREATS

Radius = float | Tensor


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Values (B,) in the shape (B,1,...) that multiplies `like` (B,...)."""
    return values.view(-1, *[1] * (like.dim() - 1))


def steepest(gradient: Tensor, norm: str) -> Tensor:
    """The direction of steepest ascent of size 1; zero where the gradient is zero.

    Not for l1 and l0.
    """
    if norm in ("linf", "flow"):
        return gradient.sign()
    if norm == "flow-l2":
        return math.sqrt(math.prod(gradient.shape[2:])) * steepest(gradient, "l2")
    # Scaled by the largest entry first: the squares of a confident model's gradient may underflow.
    tiny = torch.finfo(gradient.dtype).tiny
    largest = gradient.abs().flatten(1).amax(1).clamp_min(tiny)
    scaled = gradient / per_sample(largest, gradient)
    return scaled / per_sample(THREATS["l2"].size(scaled).clamp_min(1e-15), gradient)


def project(x: Tensor, adversarial: Tensor, radius: Radius, norm: str) -> Tensor:
    """The nearest point of the ball of that radius about x, then of [0,1]."""
    return (x + shrink(adversarial - x, radius, norm)).clamp(0, 1)


def shrink(delta: Tensor, radius: Radius, norm: str) -> Tensor:
    """The nearest perturbation, in the euclidean sense, to delta (B,...) inside the ball."""
    limit = per_sample(_radii(radius, delta), delta)
    if norm == "flow-l2":
        return shrink(delta, math.sqrt(math.prod(delta.shape[2:])) * limit.flatten(), "l2")
    if norm in ("linf", "flow"):
        return torch.maximum(torch.minimum(delta, limit), -limit)
    if norm == "l2":
        size = per_sample(THREATS["l2"].size(delta), delta)
        return delta * (limit / size.clamp_min(1e-30)).clamp_max(1)
    if norm == "l1":
        return _shrink_l1(delta, limit)
    if norm == "l0":
        return _largest(delta, limit)
    raise ValueError(f"no ball of the norm {norm}")


def random_point(x: Tensor, radius: Radius, norm: str, samples: Samples) -> Tensor:
    """A random perturbation, shaped as x, inside the ball; not for l1 and l0.

    Uniform in the linf ball; in the l2 ball of uniform direction and uniform length: points uniform
    in the ball all lie at its surface in many dimensions, from where fewer samples are fooled.
    """
    limit = per_sample(_radii(radius, x), x)
    if norm in ("linf", "flow"):
        return limit * samples.uniform(x)
    length = (samples.uniform(x[:, :1, :1, :1]) + 1) / 2  # uniform in [0,1)
    return limit * length * steepest(samples.normal(x), norm)


def _radii(radius: Radius, like: Tensor) -> Tensor:
    return torch.as_tensor(radius, dtype=like.dtype, device=like.device).expand(len(like))


def _shrink_l1(delta: Tensor, limit: Tensor) -> Tensor:
    """Soft thresholding at the level that leaves an l1 size of `limit` (Duchi et al. 2008)."""
    flat, radius = delta.flatten(1).abs(), limit.flatten(1)
    ordered = flat.sort(1, descending=True).values
    excess = ordered.cumsum(1) - radius
    count = torch.arange(1, flat.shape[1] + 1, device=flat.device)
    kept = (ordered * count > excess).sum(1, keepdim=True).clamp_min(1)
    level = excess.gather(1, kept - 1) / kept
    outside = flat.sum(1, keepdim=True) > radius
    level = torch.where(outside, level, torch.zeros_like(level)).clamp_min(0)
    return delta.sign() * (delta.abs() - level.view_as(limit)).clamp_min(0)


def _largest(delta: Tensor, limit: Tensor) -> Tensor:
    """The `limit` entries of largest absolute value; of equals, those that come first."""
    flat = delta.flatten(1)
    order = flat.abs().argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order)
    rank.scatter_(1, order, torch.arange(flat.shape[1], device=flat.device).expand_as(order))
    return torch.where(
        (rank < limit.flatten(1).floor()).view_as(delta), delta, torch.zeros_like(delta)
    )
