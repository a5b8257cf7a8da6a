"""The canvas of a data set: what it is for images of these sizes, and where it puts each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from robustbench_gpm.datasets import boxes
from robustbench_gpm.datasets.boxes import Box
from robustbench_gpm.datasets.canvas import GREY, Canvas, common_canvas


@pytest.mark.parametrize(
    ("sizes", "height", "canvas"),
    [
        ([(6, 8), (6, 8)], None, (6, 8, False)),
        ([(180, 240), (360, 480)], None, (180, 240, False)),
        ([(180, 240), (360, 480)], 90, (90, 120, False)),
        ([(375, 500), (250, 333)], None, (250, 333, False)),  # alike but for rounding
        ([(750, 1001), (375, 500)], 75, (75, 100, False)),
        ([(375, 500), (500, 375)], None, (500, 500, True)),
        ([(375, 500), (2000, 375)], None, (512, 512, True)),
        ([(375, 500), (375, 510)], 64, (64, 64, True)),
        ([(100, 100)], 33, (33, 33, False)),
        ([(1024, 2048)], None, (512, 1024, False)),  # no side beyond 1024 unless asked for
        ([(4000, 1000)], None, (1024, 256, False)),
        ([(1024, 2048)], 1500, (1500, 3000, False)),
    ],
)
def test_the_canvas_is_chosen_by_aspect_ratios(
    sizes: list[tuple[int, int]], height: int | None, canvas: tuple[int, int, bool]
) -> None:
    assert common_canvas(sizes, height) == Canvas(*canvas)
    assert common_canvas(np.array(sizes, np.int32), height) == Canvas(*canvas)


@settings(deadline=None)
@given(
    width=st.integers(1, 300),
    height=st.integers(1, 300),
    side=st.integers(1, 300),
    edges=st.tuples(*[st.floats(0, 1)] * 4),
)
def test_an_image_keeps_its_shape_and_a_box_its_share_of_it(
    width: int, height: int, side: int, edges: tuple[float, ...]
) -> None:
    for canvas in (Canvas(side, side, True), Canvas(side, max(1, side // 2), False)):
        top, left, tall, wide = canvas.place(height, width)
        assert 0 <= left <= canvas.width - wide
        assert 0 <= top <= canvas.height - tall
        if canvas.letterbox:
            assert max(wide, tall) == side
            assert abs(wide * height - tall * width) <= max(width, height)
            assert abs((canvas.width - wide) - 2 * left) <= 1
        else:
            assert (tall, wide) == (canvas.height, canvas.width)
        image = boxes.BoxedImage(Path(), width, height, (), Path())
        x1, y1, x2, y2 = edges
        box = Box(x1 * width, y1 * height, x2 * width, y2 * height, "cell")
        placed = boxes._on_canvas(box, image, canvas, ("cell",))
        expected = (left + x1 * wide, top + y1 * tall, left + x2 * wide, top + y2 * tall, 0)
        assert placed == pytest.approx(expected)


def test_images_and_masks_are_painted_at_one_place() -> None:
    canvas, size = Canvas(12, 12, True), (4, 8)
    image = Image.fromarray(np.zeros((*size, 3), np.uint8))
    mask = Image.fromarray(np.full(size, 7, np.uint8))
    seen = canvas.photograph(image)
    marked = canvas.painted(mask, Image.Resampling.NEAREST, 255)
    assert seen.shape == (3, 12, 12)
    assert np.array_equal((seen == 0).all(0), marked == 7)
    assert np.array_equal((seen == GREY).all(0), marked == 255)
    assert int((marked == 7).sum()) == 12 * 6
