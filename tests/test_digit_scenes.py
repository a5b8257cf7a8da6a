"""Scenes of digits: what is in them, where, and that splits share nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from robustbench_gpm.core import UserError
from robustbench_gpm.datasets import LoadOptions, SplitName, digit_scenes, load_split
from robustbench_gpm.datasets.digit_scenes import CLASSES, SIDE, scene, split_of
from robustbench_gpm.datasets.segmentation import DIGIT_SCENES
from robustbench_gpm.masks import VOID

SOME = [*range(60), *range(2000, 2030), *range(2200, 2230)]


def options(**more: int) -> LoadOptions:
    return LoadOptions(None, Path("unused"), **more)


@pytest.mark.parametrize("index", SOME[::7])
def test_boxes_hug_the_ink_of_their_digits(index: int) -> None:
    shown = scene(index)
    assert 2 <= len(shown.boxes) == len(shown.values) <= 4
    inked = (shown.mask > 0) & (shown.mask != VOID)
    covered = torch.zeros_like(inked)
    for box, value in zip(shown.boxes.tolist(), shown.values.tolist(), strict=True):
        left, top, right, bottom = box
        assert 0 <= left < right <= SIDE
        assert 0 <= top < bottom <= SIDE
        inside = inked[top:bottom, left:right]
        assert (shown.mask[top:bottom, left:right][inside] == 1 + value).all()
        assert all(side.any() for side in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))
        covered[top:bottom, left:right] = True
    assert not (inked & ~covered).any()


def test_ink_is_bright_the_background_faint_and_edges_void() -> None:
    for index in SOME[::5]:
        image, mask = scene(index).image[0], scene(index).mask
        ink = (mask > 0) & (mask != VOID)
        assert int(image[ink].min()) >= 128
        assert int(image[mask == 0].max()) < 64
        edge = image[mask == VOID]
        assert 64 <= int(edge.min()) <= int(edge.max()) < 128


def clear(image: np.ndarray) -> np.ndarray:
    """The image without what noise, which stays below 32, may have changed."""
    return np.where(image >= 32, image, 0)


def cells(image: np.ndarray, box: list[int]) -> Iterator[bytes]:
    """Every digit of 8x8 pixels whose ink might be that in the box."""
    left, top, right, bottom = box
    for scale in (1, 2):
        size = 8 * scale
        for y in range(max(0, bottom - size), min(top, SIDE - size) + 1):
            for x in range(max(0, right - size), min(left, SIDE - size) + 1):
                cell = image[y : y + size, x : x + size]
                small = cell[::scale, ::scale]
                if np.array_equal(np.kron(small, np.ones((scale, scale))), cell):
                    yield small.tobytes()


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_every_digit_shown_is_of_its_own_split_alone(split: SplitName) -> None:
    source = load_split("digits", split, options())
    own = {clear(image.numpy()).tobytes() for image in source.images}
    for index in (i for i in SOME if split_of(i) == split):
        shown = scene(index)
        image = clear(shown.image[0].numpy())
        for box in shown.boxes.tolist():
            assert any(cell in own for cell in cells(image, box))


def test_scenes_are_what_they_always_were() -> None:
    """Numbers of one run, kept: another version of a library must not change the data set."""
    first, last = scene(0), scene(2599)
    assert first.boxes.tolist() == [
        [9, 16, 19, 32],
        [6, 4, 11, 12],
        [16, 7, 19, 15],
        [24, 9, 28, 17],
    ]
    assert first.values.tolist() == [1, 7, 1, 8]
    assert last.values.tolist() == [6, 8, 5, 0]
    assert [int(shown.image.long().sum()) for shown in (first, last)] == [47891, 34275]


def test_a_split_is_its_scenes() -> None:
    sizes: dict[SplitName, int] = {"train": 2000, "validation": 200, "test": 400}
    places = []
    for name, size in sizes.items():
        split = DIGIT_SCENES.load(options(), name)
        assert len(split) == size
        assert split.classes == CLASSES
        for row in (0, size - 1):
            shown = scene(int(split.index[row]))
            assert torch.equal(split.images[row], shown.image)
            assert torch.equal(split.labels[row], shown.mask)
        places += split.index.tolist()
    assert places == list(range(2600))


def test_every_class_and_both_sizes_are_shown() -> None:
    split = digit_scenes.load(options(image_size=32), "validation")
    counts = split.labels.flatten().long().bincount(minlength=256)
    assert (counts[:11] > 0).all()
    assert counts[11:VOID].sum() == 0
    heights = torch.cat([scene(i).boxes for i in split.index[:50].tolist()])
    tall = heights[:, 3] - heights[:, 1]
    assert int(tall.min()) <= 8 < int(tall.max()) <= 16


def test_batches_are_floats_and_whole_numbers() -> None:
    split = digit_scenes.load(options(), "validation")
    x, y = split.batch(slice(0, 3))
    assert x.dtype == torch.float32
    assert 0.5 < float(x.max()) <= 1
    assert y.dtype == torch.int64
    assert y.shape == (3, 32, 32)
    few = split.limit(5)
    assert torch.equal(few.limit(2).labels, split.limit(2).labels)
    assert few.batch(slice(0, 1))[1].dtype == torch.int64


def test_what_there_is_not_is_refused() -> None:
    for index in (-1, 2600):
        with pytest.raises(IndexError, match="scenes 0 to 2599"):
            scene(index)
    with pytest.raises(UserError, match="32x32 and are not resized"):
        digit_scenes.load(options(image_size=64), "train")
