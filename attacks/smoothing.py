"""Gaussian smoothing of fields such as flows, as a linear map that is its own adjoint."""

from __future__ import annotations

import math

import torch
from torch import Tensor

REACH = 4.0  # standard deviations at which the Gaussian is cut off; 6e-5 of it lies beyond


def smoothed(field: Tensor, sigma: float) -> Tensor:
    """A field (B,C,H,W) convolved with a Gaussian of standard deviation `sigma`, in pixels.

    The Gaussian is separable, cut off at the first whole pixel past REACH standard deviations, and
    sums to 1. Beyond the edge the field is zero, so that the map is symmetric, <Sa, b> = <a, Sb>;
    towards the edge it therefore takes away from a constant, and it never raises a largest absolute
    value. A sigma of 0 gives the field itself. Differentiable; in the field's own precision.
    """
    if sigma == 0:
        return field
    height, width = field.shape[2:]
    return _matrix(height, sigma, field) @ field @ _matrix(width, sigma, field)


def _matrix(size: int, sigma: float, like: Tensor) -> Tensor:
    """The smoothing along an axis of `size` pixels as a symmetric matrix (size,size)."""
    reach = max(math.ceil(REACH * sigma), 1)
    places = torch.arange(size, device=like.device)
    gaps = (places[:, None] - places).abs()
    return (
        _weights(gaps, sigma, reach, like)
        / _weights(torch.arange(-reach, reach + 1, device=like.device), sigma, reach, like).sum()
    )


def _weights(gaps: Tensor, sigma: float, reach: int, like: Tensor) -> Tensor:
    weights = torch.exp(-0.5 * (gaps.to(like.dtype) / sigma).square())
    return weights * (gaps.abs() <= reach)
