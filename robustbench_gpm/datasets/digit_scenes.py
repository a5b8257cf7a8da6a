"""Scenes of handwritten digits: for segmentation and detection, without any download.

Two to four of scikit-learn's digits of 8x8 pixels, some of them at twice the size, stand apart from
each other on a canvas of 32x32 pixels, over faint noise. A scene is made of hashes of its index
alone, so that it is the same on every machine. No digit that one split shows is shown by another.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..core import UserError
from ..masks import VOID
from . import digits
from .base import LoadOptions, Split, SplitName
from .decode import Pixels
from .shuffle import SCENE, scramble

SIDE, CELL = 32, 8
LEAST, MOST = 2, 4  # digits in a scene
# Scenes by index: first those to train on, then validation, then test.
TRAIN, VALIDATION, TEST = 2000, 200, 400
CLASSES = ("background", *(f"digit {value}" for value in range(10)))
INK, FAINT = 128, 64  # from where a pixel is the digit's, and from where it is void, its edge
NOISE = 32  # noise is uniform in 0..31, of 255


class Scene(NamedTuple):
    """An image and what is in it.

    image: uint8 (1,32,32); mask: uint8 (32,32), 0 for the background, 1 + value on a digit's ink
    and VOID on its faint edge; boxes: int64 (n,4), the left, top, right and bottom of each digit's
    ink, right and bottom being the first column and row beyond it; values: int64 (n,), 0..9.
    """

    image: Tensor
    mask: Tensor
    boxes: Tensor
    values: Tensor


def scene(index: int) -> Scene:
    """The scene of that index, in 0..2599; `split_of` says which split it is of.

    Raises IndexError beyond.
    """
    sources, values = _sources(split_of(index))
    draw = _Draws(index)
    image, taken = np.zeros((SIDE, SIDE), np.uint8), np.zeros((SIDE, SIDE), np.bool_)
    mask, boxes, shown = np.zeros((SIDE, SIDE), np.uint8), [], []
    for _ in range(LEAST + draw(MOST - LEAST + 1)):
        which, size = draw(len(sources)), (1 + draw(2)) * CELL
        free = _free(taken, size)
        if not len(free):  # a large digit may find no place where a small one does
            size = CELL
            free = _free(taken, size)
        if not len(free):
            break
        top, left = free[draw(len(free))]
        cell = (slice(top, top + size), slice(left, left + size))
        ink = np.kron(sources[which], np.ones((size // CELL, size // CELL), np.uint8))
        image[cell], taken[cell] = ink, True
        mask[cell] = np.where(ink >= INK, 1 + values[which], np.where(ink >= FAINT, VOID, 0))
        rows, columns = np.nonzero(ink >= INK)
        box = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        boxes.append(np.add(box, (left, top, left, top)))
        shown.append(values[which])
    lit = np.maximum(image, _noise(index))
    return Scene(
        torch.from_numpy(lit)[None],
        torch.from_numpy(mask),
        torch.from_numpy(np.stack(boxes)).long(),
        torch.tensor(shown, dtype=torch.int64),
    )


def split_of(index: int) -> SplitName:
    """Which split shows a scene. Raises IndexError for one that there is not."""
    if not 0 <= index < TRAIN + VALIDATION + TEST:
        raise IndexError(f"there are scenes 0 to {TRAIN + VALIDATION + TEST - 1}, and no {index}")
    if index < TRAIN:
        return "train"
    return "validation" if index < TRAIN + VALIDATION else "test"


def load(options: LoadOptions, split: SplitName) -> Split:
    """2000 / 200 / 400 scenes: images (N,1,32,32), masks (N,32,32) of 11 classes and void.

    The data path and the validation share play no part. Raises UserError for another image size.
    """
    if options.image_size not in {None, SIDE}:
        raise UserError(
            f"digit_scenes are {SIDE}x{SIDE} and are not resized: leave the image size out"
        )
    images, masks, index = _scenes(split)
    return Split(images.clone(), masks.clone(), index.clone(), CLASSES)


def load_boxed(options: LoadOptions, split: SplitName) -> Split:
    """The same scenes with boxes: labels float32 (N,4,5), of 10 classes."""
    scenes = load(options, split)
    labels = torch.full((len(scenes), MOST, 5), -1.0)
    for place, index in enumerate(scenes.index.tolist()):
        _, _, boxes, values = scene(index)
        labels[place, : len(boxes)] = torch.cat((boxes, values[:, None]), 1).float()
    return Split(scenes.images, labels, scenes.index, CLASSES[1:])


@cache
def _scenes(split: SplitName) -> tuple[Tensor, Tensor, Tensor]:
    index = [i for i in range(TRAIN + VALIDATION + TEST) if split_of(i) == split]
    made = [scene(i) for i in index]
    images, masks = torch.stack([s.image for s in made]), torch.stack([s.mask for s in made])
    return images, masks, torch.tensor(index)


@cache
def _sources(split: SplitName) -> tuple[Pixels, npt.NDArray[np.int64]]:
    """The digits of a split, (n,8,8), and their values (n,), parted as the data set `digits` is."""
    source = digits.load(LoadOptions(None, Path()), split)
    return source.images[:, 0].numpy(), source.labels.numpy()


class _Draws:
    """Numbers that the scene's index decides, one after another."""

    def __init__(self, index: int) -> None:
        self._hashes = iter(scramble(torch.arange(64), SCENE, 0, index).tolist())

    def __call__(self, below: int) -> int:
        """The next one, in 0..below-1."""
        return int(next(self._hashes) % below)


def _noise(index: int) -> Pixels:
    hashes = scramble(torch.arange(SIDE * SIDE), SCENE, 1, index)
    noise: Pixels = (hashes % np.uint64(NOISE)).astype(np.uint8).reshape(SIDE, SIDE)
    return noise


def _free(taken: npt.NDArray[np.bool_], size: int) -> npt.NDArray[np.int64]:
    """Top left corners (n,2) of the squares of that size that no digit's cell overlaps."""
    squares = np.lib.stride_tricks.sliding_window_view(taken, (size, size))
    free: npt.NDArray[np.int64] = np.argwhere(~squares.any((2, 3)))
    return free
