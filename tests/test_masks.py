"""Masks that move with their images."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustbench_gpm.deformation import warp
from robustbench_gpm.masks import VOID, moved

SHIFTS = st.integers(-9, 9)


def masks(count: int = 2, height: int = 5, width: int = 7) -> torch.Tensor:
    drawn = torch.randint(0, 4, (count, height, width), generator=torch.Generator().manual_seed(1))
    drawn[:, 2, 3] = VOID
    return drawn


def constant(like: torch.Tensor, right: float, down: float) -> torch.Tensor:
    flow = torch.zeros(len(like), 2, *like.shape[1:])
    flow[:, 0], flow[:, 1] = right, down
    return flow


@given(SHIFTS, SHIFTS)
@settings(max_examples=60, deadline=None)
def test_a_translation_moves_every_pixel_and_brings_in_void(right: int, down: int) -> None:
    y = masks()
    found = moved(y, constant(y, right, down))
    for row in range(5):
        for column in range(7):
            inside = 0 <= row + down < 5 and 0 <= column + right < 7
            there = y[:, row + down, column + right] if inside else torch.tensor([VOID, VOID])
            assert torch.equal(found[:, row, column], there)


def test_whole_pixel_flows_move_masks_as_they_move_images() -> None:
    y = masks(3)
    flow = torch.randint(-3, 4, (3, 2, 5, 7)).float()
    ones = nn_one_hot(y)
    found = moved(y, flow)
    inside = warp(torch.ones(3, 1, 5, 7), flow, "zeros")[:, 0] == 1
    assert torch.equal(found == VOID, ~inside | (warp(ones[:, 4:], flow)[:, 0] == 1))
    kept = found != VOID
    assert kept.any()
    assert torch.equal(warp(ones, flow).argmax(1)[kept], found[kept])


def nn_one_hot(y: torch.Tensor) -> torch.Tensor:
    """Images (B,5,H,W) of ones where each of four classes, and void, is."""
    return torch.stack([y == value for value in (0, 1, 2, 3, VOID)], dim=1).float()


@pytest.mark.parametrize(("shift", "whole"), [(0.49, 0), (0.5, 1), (-0.5, 0), (-0.51, -1)])
def test_places_between_pixels_take_the_nearest(shift: float, whole: int) -> None:
    y = masks()
    for flow in ((shift, 0), (0, shift)):
        rounded = [whole if part else 0 for part in flow]
        assert torch.equal(moved(y, constant(y, *flow)), moved(y, constant(y, *rounded)))


def test_no_flow_changes_nothing_and_keeps_the_type() -> None:
    y = masks().to(torch.uint8)
    found = moved(y, constant(y, 0, 0))
    assert found.dtype == torch.uint8
    assert torch.equal(found, y)


def test_flows_that_leave_the_image_by_far_give_void() -> None:
    y = masks()
    assert (moved(y, constant(y, 1e30, 0)) == VOID).all()
    assert (moved(y, constant(y, 0, -float("inf"))) == VOID).all()


def test_each_sample_has_its_own_flow() -> None:
    y = masks()
    flow = constant(y, 0, 0)
    flow[1, 0] = 1
    found = moved(y, flow)
    assert torch.equal(found[0], y[0])
    assert torch.equal(found[1, :, :-1], y[1, :, 1:])
