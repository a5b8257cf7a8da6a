"""Boxes under deformations: closed forms, and what the warp itself does to painted boxes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from robustbench_gpm.deformation import warp
from robustbench_gpm.tasks.moved_boxes import move_boxes

Y = torch.tensor(
    [[[10.0, 8, 22, 20, 2], [4, 15, 9, 27, -3], [-1, -1, -1, -1, -1]]], dtype=torch.float64
)
HEIGHT, WIDTH = 36, 44


def affine(matrix: Tensor, shift: tuple[float, float] = (0.0, 0.0)) -> Tensor:
    """The flow (1,2,H,W) by which the image is read at matrix (p - c) + c + shift."""
    rows, columns = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    centre = torch.tensor([WIDTH / 2, HEIGHT / 2], dtype=torch.float64)
    p = torch.stack((columns, rows), -1) + 0.5 - centre
    moved = p @ matrix.T + torch.tensor(shift, dtype=torch.float64)
    return (moved - p).permute(2, 0, 1)[None]


def turned(degrees: float, zoom: float = 1.0) -> Tensor:
    angle = math.radians(degrees)
    rows = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    return zoom * torch.tensor(rows, dtype=torch.float64)


def test_no_flow_moves_nothing() -> None:
    assert torch.equal(move_boxes(Y, affine(torch.eye(2).double())), Y)


@settings(deadline=None)
@given(right=st.floats(-6, 6), down=st.floats(-6, 6))
def test_a_shift_moves_boxes_against_the_flow(right: float, down: float) -> None:
    """Content at q is read by the pixel at q - flow."""
    moved = move_boxes(Y, affine(torch.eye(2).double(), (right, down)))
    shift = torch.tensor([right, down, right, down, 0]).double()
    expected = Y[0, :2] - shift
    expected[:, :4:2].clamp_(0, WIDTH)
    expected[:, 1:4:2].clamp_(0, HEIGHT)
    torch.testing.assert_close(moved[0, :2], expected, atol=1e-3, rtol=0)
    assert torch.equal(moved[0, 2], Y[0, 2])


@pytest.mark.parametrize("degrees", [-40, 15, 45])
@pytest.mark.parametrize("zoom", [0.6, 1.0, 1.8])
def test_rotation_and_zoom_are_their_inverse_on_the_corners(degrees: float, zoom: float) -> None:
    matrix = turned(degrees, zoom)
    y = torch.tensor([[[18.0, 14, 25, 24, 1]]]).double()
    x1, y1, x2, y2, _ = y[0, 0].tolist()
    corners = torch.tensor([[x1, y1], [x2, y1], [x2, y2], [x1, y2]]).double()
    centre = torch.tensor([WIDTH / 2, HEIGHT / 2]).double()
    back = (corners - centre) @ torch.linalg.inv(matrix).T + centre
    expected = torch.cat((back.amin(0), back.amax(0)))
    moved = move_boxes(y, affine(matrix))
    torch.testing.assert_close(moved[0, 0, :4], expected, atol=2e-3, rtol=0)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), reach=st.floats(0.5, 4))
def test_a_painted_box_is_where_it_is_said_to_be(seed: int, reach: float) -> None:
    """Smooth random flows: the warped paint's bounding box, at half of its brightness."""
    coarse = 2 * torch.rand(1, 2, 4, 4, generator=torch.Generator().manual_seed(seed)).double() - 1
    flow = reach * torch.nn.functional.interpolate(
        coarse, (HEIGHT, WIDTH), mode="bicubic", align_corners=True
    )
    x = torch.zeros(1, 1, HEIGHT, WIDTH).double()
    x[..., 12:26, 14:30] = 1
    y = torch.tensor([[[14.0, 12, 30, 26, 0]]]).double()
    rows, columns = (warp(x, flow)[0, 0] >= 0.5).nonzero().unbind(1)
    seen = torch.stack((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
    moved = move_boxes(y, flow)[0, 0, :4]
    assert (moved - seen).abs().max() <= 1.0


def test_boxes_that_leave_the_image_are_gone_and_others_are_cut() -> None:
    far = affine(torch.eye(2).double(), (12.0, 0.0))
    moved = move_boxes(Y, far)
    assert moved[0, 0].tolist() == pytest.approx([0, 8, 10, 20, 2])
    assert (moved[0, 1] == -1).all()


def test_a_folded_flow_gives_boxes_inside_the_image_or_none() -> None:
    flow = 30 * torch.randn(3, 2, HEIGHT, WIDTH).double()
    moved = move_boxes(Y.expand(3, -1, -1), flow)
    there = moved[..., 4] != -1
    assert torch.isfinite(moved).all()
    assert (moved[there][:, :2] >= 0).all()
    assert (moved[there][:, 2:4] <= torch.tensor([WIDTH, HEIGHT])).all()
    alone = torch.cat([move_boxes(Y, f[None]) for f in flow])
    assert torch.equal(alone, moved)
