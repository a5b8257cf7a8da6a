"""The smoothing of flows beside scipy's, and as a symmetric linear map."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from test_attacks_oracles import noise

from robustbench_gpm.attacks.smoothing import smoothed

SIGMAS = (0.0, 0.5, 1.3)


def filtered(field: np.ndarray, sigma: float) -> np.ndarray:
    """Scipy's Gaussian over the last two axes of a field, zero beyond its edges."""
    if sigma == 0:
        return field
    sigmas = [0.0] * (field.ndim - 2) + [sigma, sigma]
    radius = [0] * (field.ndim - 2) + [int(np.ceil(4 * sigma))] * 2
    return gaussian_filter(field, sigmas, mode="constant", radius=radius)


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("shape", [(2, 3, 9, 14), (1, 2, 3, 5), (2, 1, 1, 1)])
def test_smoothing_is_scipys_gaussian(sigma: float, shape: tuple[int, ...]) -> None:
    field = noise(*shape)
    expected = torch.from_numpy(filtered(field.numpy(), sigma))
    torch.testing.assert_close(smoothed(field, sigma), expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(smoothed(field.float(), sigma), expected.float())


@pytest.mark.parametrize("sigma", [*SIGMAS, 1e-200, 40.0])
def test_smoothing_is_its_own_adjoint_and_raises_nothing(sigma: float) -> None:
    one, other = noise(1, 2, 7, 10, seed=1).requires_grad_(), noise(1, 2, 7, 10, seed=2)
    product = (smoothed(one, sigma) * other).sum()
    torch.testing.assert_close(product, (one * smoothed(other, sigma)).sum())
    (gradient,) = torch.autograd.grad(product, one)
    torch.testing.assert_close(gradient, smoothed(other, sigma))
    assert smoothed(other, sigma).abs().max() <= other.abs().max() * (1 + 1e-12)
    assert torch.equal(smoothed(other, 0.0), other)
