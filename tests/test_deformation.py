"""The warp against rolls, finite differences, torch's own sampler and the chain rule."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robustbench_gpm.deformation import (
    Padding,
    identity_flow,
    image_derivative,
    max_displacement,
    pull_back,
    to_normalised,
    to_pixels,
    warp,
)

PADDINGS: tuple[Padding, ...] = ("border", "zeros")


def images(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def generic_flow(b: int, h: int, w: int, reach: float, seed: int = 1) -> Tensor:
    """Displacements whose distance to the kinks, at whole pixels, is at least 0.05."""
    flow = reach * (2 * images(b, 2, h, w, seed=seed) - 1)
    whole = flow.round()
    rest = flow - whole
    rest = torch.where(rest.abs() < 0.05, torch.full_like(rest, 0.05), rest)
    return whole + rest


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("size", [8, 28, 32, 33, 224])
def test_no_flow_changes_no_bit(size: int, padding: Padding) -> None:
    x = images(1, 3, size, size, dtype=torch.float32)
    assert torch.equal(warp(x, identity_flow(x), padding), x)


@settings(max_examples=20, deadline=None)
@given(right=st.integers(-5, 5), down=st.integers(-5, 5), padding=st.sampled_from(PADDINGS))
def test_whole_pixel_flows_are_rolls_inside(right: int, down: int, padding: Padding) -> None:
    x = images(2, 3, 14, 17, dtype=torch.float32)
    flow = identity_flow(x)
    flow[:, 0], flow[:, 1] = right, down
    rolled = x.roll((-down, -right), (2, 3))
    inside = (..., slice(5, -5), slice(5, -5))
    assert torch.equal(warp(x, flow, padding)[inside], rolled[inside])


def test_beyond_the_edge_lies_the_edge_or_black() -> None:
    x = images(1, 1, 5, 6)
    flow = identity_flow(x)
    flow[:, 0] = 100.0
    assert torch.equal(warp(x, flow, "border"), x[..., -1:].expand_as(x))
    assert torch.equal(warp(x, flow, "zeros"), torch.zeros_like(x))
    assert torch.isfinite(warp(x, flow * 1e30, "border")).all()


def test_a_linear_ramp_is_sampled_exactly() -> None:
    rows, columns = torch.arange(9.0).double()[:, None], torch.arange(11.0).double()
    ramp = (0.02 * rows + 0.03 * columns).expand(1, 1, 9, 11)
    flow = generic_flow(1, 9, 11, reach=1.9)
    moved = ramp + 0.03 * flow[:, 0] + 0.02 * flow[:, 1]
    inside = (..., slice(2, -2), slice(2, -2))
    torch.testing.assert_close(warp(ramp, flow)[inside], moved[inside], rtol=0, atol=1e-12)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("order", ["first", "second"])
def test_derivatives_agree_with_finite_differences(
    order: Literal["first", "second"], padding: Padding
) -> None:
    x = images(1, 2, 3, 4).requires_grad_()
    flow = generic_flow(1, 3, 4, reach=1.6).requires_grad_()
    check = torch.autograd.gradcheck if order == "first" else torch.autograd.gradgradcheck
    assert check(lambda x, flow: warp(x, flow, padding), (x, flow), eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-6), (torch.float32, 5e-5)])
def test_agrees_with_grid_sample(dtype: torch.dtype, within: float, padding: Padding) -> None:
    # In float32 a coordinate in [-1,1] is rounded by 6e-8, which is 1e-6 px at 33 px.
    x = images(3, 2, 21, 33, dtype=dtype)
    flow = generic_flow(3, 21, 33, reach=6.0).to(dtype)
    rows = torch.arange(21, dtype=dtype)[:, None] + flow[:, 1]
    columns = torch.arange(33, dtype=dtype) + flow[:, 0]
    grid = torch.stack((columns * 2 / 32 - 1, rows * 2 / 20 - 1), dim=-1)
    theirs = nn.functional.grid_sample(x, grid, "bilinear", padding, align_corners=True)
    torch.testing.assert_close(warp(x, flow, padding), theirs, rtol=0, atol=within)


def test_derivative_at_pixel_centres_is_the_central_difference() -> None:
    x = images(2, 3, 7, 6)
    gradient = images(2, 3, 7, 6, seed=5) - 0.5
    flow = identity_flow(x).requires_grad_()
    (through_warp,) = torch.autograd.grad((warp(x, flow) * gradient).sum(), flow)
    torch.testing.assert_close(through_warp, pull_back(gradient, x))

    right, down = image_derivative(x)
    torch.testing.assert_close(right[..., 2], (x[..., 3] - x[..., 1]) / 2)
    torch.testing.assert_close(right[..., 0], (x[..., 1] - x[..., 0]) / 2)
    torch.testing.assert_close(down[..., 3, :], (x[..., 4, :] - x[..., 2, :]) / 2)
    torch.testing.assert_close(through_warp[:, 0], (gradient * right).sum(1))
    torch.testing.assert_close(through_warp[:, 1], (gradient * down).sum(1))


def test_derivative_at_a_whole_pixel_flow_is_central_too() -> None:
    x = images(1, 1, 9, 9)
    flow = identity_flow(x)
    flow[:, 0] = 2.0
    flow.requires_grad_()
    (slope,) = torch.autograd.grad(warp(x, flow).sum(), flow)
    expected = (x[0, 0, 4, 7] - x[0, 0, 4, 5]) / 2
    torch.testing.assert_close(slope[0, 0, 4, 4], expected)


def small_net() -> nn.Module:
    torch.manual_seed(3)
    body = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.Softplus(), nn.Flatten(), nn.Linear(144, 3)
    )
    return body.double()


def test_pull_back_is_the_chain_rule_through_a_network() -> None:
    net, x = small_net(), images(2, 2, 6, 6)
    at = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(net(at)[:, 1].sum(), at)
    flow = identity_flow(x).requires_grad_()
    (through_warp,) = torch.autograd.grad(net(warp(x, flow))[:, 1].sum(), flow)
    torch.testing.assert_close(pull_back(gradient, x), through_warp)


@pytest.mark.parametrize("at_rest", [True, False])
def test_second_derivative_through_a_network_is_finite_and_reaches_the_weights(
    at_rest: bool,
) -> None:
    net, x = small_net(), images(2, 2, 6, 6)
    flow = identity_flow(x) if at_rest else generic_flow(2, 6, 6, reach=0.8)
    flow.requires_grad_()
    (slope,) = torch.autograd.grad(net(warp(x, flow)).square().sum(), flow, create_graph=True)
    slope.square().sum().backward()
    for parameter in net.parameters():
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()
        assert parameter.grad.abs().sum() > 0
    assert flow.grad is not None
    assert torch.isfinite(flow.grad).all()


def test_units_and_sizes() -> None:
    assert to_pixels(0.01, 32) == pytest.approx(0.155)
    assert to_normalised(to_pixels(0.3, 17), 17) == pytest.approx(0.3)
    flow = torch.zeros(2, 2, 3, 3)
    flow[0, 1, 2, 0], flow[1, 0, 0, 1] = -1.5, 0.25
    assert max_displacement(flow).tolist() == [1.5, 0.25]
