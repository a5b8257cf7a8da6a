"""The warp against rolls, finite differences, torch's own sampler and the chain rule."""

from __future__ import annotations

from typing import Literal, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robustbench_gpm.core import UserError
from robustbench_gpm.deformation import (
    Padding,
    identity_flow,
    image_derivative,
    max_displacement,
    pull_back,
    root_mean_square,
    to_normalised,
    to_pixels,
    warp,
)

PADDINGS: tuple[Padding, ...] = get_args(Padding)
SIZES = [(8, 8), (32, 32), (224, 224), (8, 13), (224, 32)]  # (height, width)


def images(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def generic_flow(b: int, h: int, w: int, reach: float, seed: int = 1) -> Tensor:
    """Displacements whose distance to the kinks, at whole pixels, is at least 0.05."""
    flow = reach * (2 * images(b, 2, h, w, seed=seed) - 1)
    whole = flow.round()
    rest = flow - whole
    rest = torch.where(rest.abs() < 0.05, torch.full_like(rest, 0.05), rest)
    return whole + rest


def sampled(x: Tensor, flow: Tensor, padding: Padding) -> Tensor:
    """The warp by torch's own sampler, with `to_normalised` between the two units."""
    height, width = x.shape[2:]
    rows = torch.arange(height, dtype=x.dtype)[:, None] + flow[:, 1]
    columns = torch.arange(width, dtype=x.dtype) + flow[:, 0]
    across, down = to_normalised(1, width), to_normalised(1, height)
    grid = torch.stack((columns * across - 1, rows * down - 1), dim=-1)
    return nn.functional.grid_sample(x, grid, "bilinear", padding, align_corners=True)


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


@pytest.mark.parametrize("far", [100.0, 1e6, 1e30, float("inf")])
def test_beyond_the_edge_lies_the_edge_or_black(far: float) -> None:
    x = images(1, 1, 5, 6)
    flow = identity_flow(x)
    flow[:, 0] = far
    assert torch.equal(warp(x, flow, "border"), x[..., -1:].expand_as(x))
    assert torch.equal(warp(x, flow, "zeros"), torch.zeros_like(x))
    assert torch.isfinite(warp(x, flow, "reflection")).all()
    assert torch.equal(warp(x, -flow, "border"), x[..., :1].expand_as(x))
    assert torch.equal(warp(x, -flow, "zeros"), torch.zeros_like(x))


@pytest.mark.parametrize("far", [-1_000_003, -9, -1, 2, 5, 11, 1_000_000])
def test_reflection_mirrors_about_the_centre_of_the_edge_pixel(far: int) -> None:
    x = images(1, 2, 4, 6, dtype=torch.float32)
    there_and_back = torch.cat((x, x.flip(3)[..., 1:-1]), dim=3)  # 0 1 2 3 4 5 4 3 2 1
    flow = identity_flow(x)
    flow[:, 0] = far
    expected = there_and_back[..., (torch.arange(6) + far) % 10]
    assert torch.equal(warp(x, flow, "reflection"), expected)
    upright, turned = x.transpose(2, 3), flow.flip(1).transpose(2, 3)
    assert torch.equal(warp(upright, turned, "reflection"), expected.transpose(2, 3))


def test_a_padding_that_is_not_known_is_refused() -> None:
    x = images(1, 1, 3, 3)
    with pytest.raises(UserError, match="unknown padding 'mirror': choose from border, zeros"):
        warp(x, identity_flow(x), "mirror")  # type: ignore[arg-type]


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
@pytest.mark.parametrize(
    ("dtype", "reach", "within"),
    [(torch.float64, 6.0, 1e-12), (torch.float64, 150.0, 1e-12), (torch.float32, 6.0, 5e-5)],
)
def test_agrees_with_grid_sample(
    dtype: torch.dtype, reach: float, within: float, padding: Padding
) -> None:
    # In float32 a coordinate in [-1,1] is rounded by 6e-8, which is 1e-6 px at 33 px.
    x = images(3, 2, 21, 33, dtype=dtype)
    flow = generic_flow(3, 21, 33, reach).to(dtype)
    theirs = sampled(x, flow, padding)
    torch.testing.assert_close(warp(x, flow, padding), theirs, rtol=0, atol=within)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_a_pixel_is_a_pixel_at_every_size(height: int, width: int) -> None:
    """One bright pixel, which a flow of one pixel brings from the next place along an axis."""
    x = torch.zeros(1, 1, height, width)
    x[0, 0, 5, 4] = 1.0
    for axis, place in ((0, (0, 0, 5, 3)), (1, (0, 0, 4, 4))):
        flow = identity_flow(x)
        flow[:, axis] = 1.0
        moved = torch.zeros_like(x)
        moved[place] = 1.0
        assert torch.equal(warp(x, flow), moved)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_normalised_lengths_are_those_of_grid_sample(height: int, width: int) -> None:
    x = images(1, 1, height, width)
    flow = generic_flow(1, height, width, reach=2.5)
    torch.testing.assert_close(warp(x, flow), sampled(x, flow, "border"), rtol=0, atol=1e-12)
    assert to_normalised(width - 1, width) == 2  # from the first pixel's centre to the last one's
    assert to_pixels(2, height) == height - 1
    assert to_pixels(to_normalised(0.7, width), width) == pytest.approx(0.7)


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


def test_root_mean_square_is_a_length_a_pixel_at_every_size() -> None:
    flow = torch.zeros(3, 2, 4, 6)
    flow[0, 0], flow[0, 1] = 3.0, -4.0  # every pixel moves by 5
    flow[1, 0, 2, 3] = -2.0  # and here one of 24, by 2
    torch.testing.assert_close(root_mean_square(flow), torch.tensor([5, 2 / 24**0.5, 0]))
    larger = flow.repeat_interleave(3, dim=2).repeat_interleave(5, dim=3)
    torch.testing.assert_close(root_mean_square(larger), root_mean_square(flow))

    same = torch.full((1, 2, 5, 7), 0.3)
    torch.testing.assert_close(root_mean_square(same), 2**0.5 * max_displacement(same))
    anything = generic_flow(4, 5, 7, reach=3.0)
    assert (root_mean_square(anything) <= 2**0.5 * max_displacement(anything)).all()
