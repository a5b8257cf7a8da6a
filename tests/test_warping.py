"""The warp's derivatives by formula, against differences of the warp and against autograd."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from robustbench_gpm.deformation import Padding, identity_flow, warp
from robustbench_gpm.warping import nine_taps

B, C, H, W = 3, 2, 6, 7
PADDINGS: tuple[Padding, ...] = get_args(Padding)
FLOWS = ["off centre", "zero", "whole", "some whole", "one axis whole", "far", "at the edge"]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def flow_named(name: str) -> Tensor:
    """A flow (B,2,H,W) that is a whole number of pixels, or at least 0.05 from one, everywhere."""
    whole = (5 * drawn(B, 2, H, W, seed=1) - 2.5).round()
    off = whole + 0.05 + 0.9 * drawn(B, 2, H, W, seed=2)
    mixed = torch.where(drawn(B, 2, H, W, seed=3) < 0.5, whole, off)
    columns, rows = torch.arange(W), torch.arange(H)[:, None]
    to_edge = torch.stack(((W - 1 - columns).expand(H, W), -rows.expand(H, W)))
    return {
        "off centre": off,
        "zero": torch.zeros_like(whole),
        "whole": whole,
        "some whole": mixed,
        "one axis whole": torch.stack((whole[:, 0], off[:, 1]), dim=1),
        "far": mixed + torch.tensor([1e6, -1e6]).view(2, 1, 1),
        "at the edge": to_edge + mixed.clamp(-1, 1),
    }[name]


def gradients(warper: object, x: Tensor, flow: Tensor, padding: Padding, g: Tensor) -> list[Tensor]:
    """The warp, and what g (B,C,H,W) becomes on x and on the flow."""
    x, flow = x.clone().requires_grad_(), flow.clone().requires_grad_()
    warped = warper(x, flow, padding)  # type: ignore[operator]
    return [warped.detach(), *torch.autograd.grad(warped, (x, flow), g)]


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("name", FLOWS)
def test_the_slope_is_that_of_the_warp_to_both_sides(name: str, padding: Padding) -> None:
    """A pixel's flow moves that pixel alone, so that two warps an axis tell every slope at once."""
    x, g, flow = drawn(B, C, H, W), drawn(B, C, H, W, seed=4) - 0.5, flow_named(name)
    step = 2.0**-6  # the warp is bilinear between centres: no step there is too long
    for axis in (0, 1):
        aside = torch.zeros_like(flow)
        aside[:, axis] = step
        slope = (warp(x, flow + aside, padding) - warp(x, flow - aside, padding)) / (2 * step)
        found = gradients(warp, x, flow, padding, g)[2][:, axis]
        torch.testing.assert_close(found, (g * slope).sum(1), rtol=0, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("name", FLOWS)
def test_agrees_with_autograd_through_nine_taps(
    name: str, padding: Padding, dtype: torch.dtype
) -> None:
    x, g = drawn(B, C, H, W).to(dtype), (drawn(B, C, H, W, seed=4) - 0.5).to(dtype)
    flow = flow_named(name).to(dtype)
    ours = gradients(warp, x, flow, padding, g)
    theirs = gradients(nine_taps, x, flow, padding, g)
    assert torch.equal(ours[0], theirs[0])
    within = 1e-6 if dtype == torch.float32 else 1e-14
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=0, atol=within)
        assert our.dtype == dtype


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("name", ["zero", "some whole", "far", "at the edge"])
def test_a_derivative_to_be_differentiated_again_is_the_same(name: str, padding: Padding) -> None:
    x, g = drawn(B, C, H, W).requires_grad_(), drawn(B, C, H, W, seed=4)

    def found(again: bool) -> tuple[Tensor, ...]:
        flow = flow_named(name) + (x - x.detach())  # made from x: what it gets, x gets too, once
        return torch.autograd.grad(warp(x, flow, padding), (x, flow), g, create_graph=again)

    first, again = found(False), found(True)
    for one, other in zip(first, again, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
        assert not one.requires_grad
        assert other.requires_grad


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("to_x", [True, False])
def test_x_or_the_flow_alone_may_need_a_gradient(to_x: bool, padding: Padding) -> None:
    x, flow, g = drawn(B, C, H, W), flow_named("some whole"), drawn(B, C, H, W, seed=4)
    _, *both = gradients(warp, x, flow, padding, g)
    alone = (x if to_x else flow).requires_grad_()
    for again in (False, True):
        warped = warp(x, flow, padding)
        (found,) = torch.autograd.grad(warped, alone, g, create_graph=again)
        torch.testing.assert_close(found, both[0 if to_x else 1])
    assert not warp(x.detach(), flow.detach(), padding).requires_grad


@pytest.mark.parametrize("warper", [warp, nine_taps])
@pytest.mark.parametrize("aside", [1e-9, -1e-9, 5e-8, -5e-8])
def test_beside_a_centre_the_slope_is_one_sided(warper: object, aside: float) -> None:
    """So near that float32 holds no weight beside 1 there: steps that cancel but for rounding."""
    x = drawn(B, C, H, W).float()
    flow = identity_flow(x)
    flow[:, 0] = aside
    *_, found = gradients(warper, x, flow, "border", torch.ones_like(x))
    steps = nn.functional.pad(x.diff(dim=3), (1, 1))  # flat beyond the edge
    expected = steps[..., 1:] if aside > 0 else steps[..., :-1]
    torch.testing.assert_close(found[:, 0], expected.sum(1), rtol=0, atol=1e-6)


def test_no_sample_sees_another() -> None:
    x, g = drawn(B, C, H, W), drawn(B, C, H, W, seed=4)
    flow = torch.stack([flow_named(name)[0] for name in ("zero", "off centre", "some whole")])
    together = gradients(warp, x, flow, "zeros", g)
    for i in range(B):
        alone = gradients(warp, x[i : i + 1], flow[i : i + 1], "zeros", g[i : i + 1])
        for whole, part in zip(together, alone, strict=True):
            assert torch.equal(whole[i : i + 1], part)
    flow[1] = torch.nan
    spoilt = gradients(warp, x, flow, "zeros", g)
    assert all(torch.equal(a[::2], b[::2]) for a, b in zip(together, spoilt, strict=True))


def test_mixed_precision_around_it_changes_nothing() -> None:
    conv = nn.Conv2d(C, 3, 3)
    x, flow = drawn(B, C, H, W).float(), flow_named("some whole").float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        warped = warp(x, flow)
        logits = conv(warped)
    assert warped.dtype == torch.float32
    assert torch.equal(warped, warp(x, flow))
    assert logits.dtype == torch.bfloat16
    (slope,) = torch.autograd.grad(logits.float().square().sum(), flow)
    assert slope.dtype == torch.float32
    assert torch.isfinite(slope).all()
    assert slope.abs().sum() > 0


@pytest.mark.parametrize("padding", PADDINGS)
def test_layouts_and_types_and_empty_batches(padding: Padding) -> None:
    x, flow = drawn(B, C, H, W), flow_named("some whole")
    g = drawn(B, C, H, W, seed=4)
    expected = gradients(warp, x, flow, padding, g)
    last = x.contiguous(memory_format=torch.channels_last)
    for a, b in zip(gradients(warp, last, flow, padding, g), expected, strict=True):
        assert torch.equal(a, b)
    single = gradients(warp, x, flow.float(), padding, g)  # a flow in a type of its own
    assert [t.dtype for t in single] == [torch.float64, torch.float64, torch.float32]
    whole = torch.tensor([2.0, -1.0]).view(1, 2, 1, 1).double()  # one move for all
    assert torch.equal(warp(x, whole, padding), warp(x, whole.expand_as(flow), padding))
    for empty in gradients(warp, x[:0], flow[:0], padding, g[:0]):
        assert len(empty) == 0
