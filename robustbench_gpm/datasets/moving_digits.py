"""Handwritten digits that move: clips that need no download, whose class is the direction."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from . import digits
from .base import LoadOptions, Split, SplitName
from .shuffle import MOVE, scramble

FRAMES, SIDE, BRIGHTEST = 6, 20, 255
NOISE = 16  # levels of noise, of 256
SPEEDS = 2  # pixels a frame: 1 or 2
DIRECTIONS = {  # (right, down)
    "right": (1, 0),
    "down_right": (1, 1),
    "down": (0, 1),
    "down_left": (-1, 1),
    "left": (-1, 0),
    "up_left": (-1, -1),
    "up": (0, -1),
    "up_right": (1, -1),
}
DIRECTION, SPEED, COLUMN, ROW, GRAIN = range(5)

Numbers = npt.NDArray[np.int64]


def load(options: LoadOptions, split: SplitName) -> Split:
    """Grey clips (N,6,20,20) of six frames, in each of which one 8x8 digit moves straight on.

    It moves by 1 or 2 pixels a frame in one of eight directions, the class. What leaves the canvas
    on one side comes back on the other, so that the digit is as likely to be at any place in any
    frame, and no frame by itself tells the class. Over everything lies faint noise, other in each
    frame. All of this depends on the digit's index alone. The splits are those of `digits`, so that
    no digit is in two of them: about 1197 / 200 / 400. The data path and the validation share play
    no part.
    """
    options.fixed_size("moving_digits", SIDE)
    source = digits.load(LoadOptions(None, options.cache_dir), split)
    index = source.index

    def drawn(what: int, below: int) -> Numbers:
        numbers: Numbers = (scramble(index, MOVE, what) % np.uint64(below)).astype(np.int64)
        return numbers

    labels = drawn(DIRECTION, len(DIRECTIONS))
    steps = np.array(list(DIRECTIONS.values()))[labels] * (1 + drawn(SPEED, SPEEDS))[:, None]
    begin = np.stack((drawn(COLUMN, SIDE), drawn(ROW, SIDE)), axis=1)
    clips = _noise(index)
    sources = source.images[:, 0].numpy()
    for clip, digit, place, step in zip(clips, sources, begin, steps, strict=True):
        canvas = np.zeros((SIDE, SIDE), dtype=np.int64)
        canvas[: len(digit), : len(digit)] = digit
        for t in range(FRAMES):
            right, down = place + t * step
            clip[t] += np.roll(canvas, (down, right), axis=(0, 1))
    images = torch.from_numpy(clips.clip(0, BRIGHTEST).astype(np.uint8))
    return Split(images, torch.from_numpy(labels), index, tuple(DIRECTIONS), FRAMES)


def _noise(index: Tensor) -> Numbers:
    """Whole levels below NOISE, (N,FRAMES,SIDE,SIDE)."""
    count = FRAMES * SIDE * SIDE
    grains = scramble((index[:, None] * count + torch.arange(count)).flatten(), MOVE, GRAIN)
    noise: Numbers = (grains % np.uint64(NOISE)).astype(np.int64)
    return noise.reshape(-1, FRAMES, SIDE, SIDE)


MOVING_DIGITS = replace(
    digits.DIGITS,
    name="moving_digits",
    task="video",
    default_model="clip_cnn",
    recipe=replace(digits.DIGITS.recipe, epochs=10),
    mean=(0.0778,),
    std=(0.1861,),
    load=load,
)
