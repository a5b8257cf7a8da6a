"""RoIAlign against torchvision's kernel, and its second derivative against finite differences."""

from __future__ import annotations

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from robustbench_gpm.models.detection_roi import roi_align

BOXES = torch.tensor(
    [
        [3.1, 2.2, 17.3, 20.9],
        [0.0, 0.0, 32.0, 24.0],  # the whole image
        [-9.0, -30.0, 40.0, 33.3],  # far over the edges
        [28.0, 20.0, 31.9, 23.9],  # in the corner
        [5.0, 5.0, 5.2, 5.1],  # within one cell
        [60.0, 60.0, 80.0, 80.0],  # outside
    ],
    dtype=torch.float64,
)
IMAGE = torch.tensor([0, 1, 1, 0, 1, 0])


def features(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(2, 3, 6, 8, dtype=dtype)


def theirs(
    x: Tensor, boxes: Tensor, image: Tensor, scale: float, size: int, samples: int
) -> Tensor:
    rois = torch.cat((image[:, None].to(boxes.dtype), boxes), 1)
    return torchvision.ops.roi_align(x, rois, size, scale, samples, aligned=True)


@pytest.mark.parametrize(("size", "samples"), [(7, 2), (3, 1), (2, 3)])
@pytest.mark.parametrize("scale", [0.25, 1.0])
def test_values_and_gradient_are_torchvisions(size: int, samples: int, scale: float) -> None:
    x = features().requires_grad_()
    mine = roi_align(x, BOXES, IMAGE, scale, size, samples)
    other = theirs(x, BOXES, IMAGE, scale, size, samples)
    torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)
    weights = torch.rand_like(mine)
    (gradient,) = torch.autograd.grad((mine * weights).sum(), x)
    (expected,) = torch.autograd.grad((other * weights).sum(), x)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    box=st.tuples(*[st.floats(-20, 60) for _ in range(4)]),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
)
def test_any_box_on_any_map(box: tuple[float, ...], height: int, width: int) -> None:
    x1, y1, x2, y2 = box
    sides = [min(x1, x2), min(y1, y2), max(x1, x2) + 0.1, max(y1, y2) + 0.1]
    boxes = torch.tensor([sides], dtype=torch.float64)
    x, image = torch.rand(1, 2, height, width, dtype=torch.float64), torch.zeros(1).long()
    args = (x, boxes, image, 0.25, 3, 2)
    torch.testing.assert_close(roi_align(*args), theirs(*args), rtol=1e-9, atol=1e-9)


def test_it_can_be_differentiated_twice_in_features_and_boxes() -> None:
    inner = BOXES[:1]

    def squared(x: Tensor, boxes: Tensor) -> Tensor:
        return roi_align(x, boxes, IMAGE[:1], 0.25, 2, 2).square()

    x = torch.rand(1, 2, 6, 8, dtype=torch.float64, requires_grad=True)
    boxes = inner.clone().requires_grad_()
    assert torch.autograd.gradcheck(squared, (x, boxes))
    assert torch.autograd.gradgradcheck(squared, (x, boxes))


def test_no_boxes_give_no_features() -> None:
    empty = roi_align(features(), BOXES[:0], IMAGE[:0], 0.25)
    assert empty.shape == (0, 3, 7, 7)
