"""The one shape in which all images of a data set come, so that they stack."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from .decode import Pixels

GREY = 128  # around a letterboxed image: near the mean of photographs, so that no hard edge arises
SQUARE_SIDE = 512  # of the square that images of several shapes are put in
LARGEST = 1024  # pixels a side, unless more are asked for


@dataclass(frozen=True)
class Canvas:
    """Height and width in pixels; with `letterbox` images keep their shape and are centred."""

    height: int
    width: int
    letterbox: bool

    def place(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Where an image of that size goes: top, left, and its height and width there."""
        if not self.letterbox:
            return 0, 0, self.height, self.width
        scale = min(self.height / height, self.width / width)
        tall = min(self.height, max(1, round(height * scale)))
        wide = min(self.width, max(1, round(width * scale)))
        return (self.height - tall) // 2, (self.width - wide) // 2, tall, wide

    def painted(self, image: Image.Image, how: Image.Resampling, beyond: int) -> Pixels:
        """The image on the canvas, (H,W) or (H,W,3), with `beyond` around it."""
        top, left, tall, wide = self.place(image.height, image.width)
        pixels = np.asarray(image.resize((wide, tall), how), dtype=np.uint8)
        whole = np.full((self.height, self.width, *pixels.shape[2:]), beyond, dtype=np.uint8)
        whole[top : top + tall, left : left + wide] = pixels
        return whole

    def photograph(self, image: Image.Image) -> Pixels:
        """An RGB image on the canvas, (3,H,W), resized bilinearly, antialiased; grey around it."""
        whole = self.painted(image, Image.Resampling.BILINEAR, GREY)
        return np.ascontiguousarray(whole.transpose(2, 0, 1))


def common_canvas(sizes: npt.ArrayLike, height: int | None) -> Canvas:
    """The canvas of images of these heights and widths (N,2), of `height` if that is given.

    Where all have one aspect ratio it has that too: each width is, to the pixel that rounding may
    take, what follows from the tallest image's. Otherwise it is a square. By default it is as high
    as the lowest image, the square 512 pixels or the longest side where that is less, and no side
    is longer than 1024.
    """
    measured = np.asarray(sizes)
    tallest, its_width = measured[measured[:, 0].argmax()].tolist()
    ratio = its_width / tallest
    if not bool((np.abs(measured[:, 1] - ratio * measured[:, 0]) <= 1).all()):
        side = height or min(SQUARE_SIDE, int(measured.max()))
        return Canvas(side, side, letterbox=True)
    if height is None:
        height = min(int(measured[:, 0].min()), LARGEST, max(1, int(LARGEST / ratio)))
    return Canvas(height, max(1, round(height * ratio)), letterbox=False)
