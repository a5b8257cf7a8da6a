"""Files of images and of masks, to bytes on a canvas."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..core import UserError
from ..masks import VOID
from .canvas import Canvas
from .decode import Pixels, open_rgb, opened

INDEXED = ("1", "L", "P")  # modes of images whose numbers are what a mask file says


def size_of(path: Path) -> tuple[int, int]:
    """Height and width of an image file. Raises UserError naming it."""
    with opened(path, "image") as image:  # which reads no more than the header
        return image.height, image.width


def image_on(canvas: Canvas, path: Path) -> Pixels:
    """An image file on the canvas, uint8 (3,H,W), RGB.

    Raises UserError naming a file that cannot be read, or has more than 8 bits a channel.
    """
    return canvas.photograph(open_rgb(path))


def mask_on(canvas: Canvas, image: Path, mask: Path, lookup: npt.NDArray[np.int16]) -> Pixels:
    """The mask file of an image file on the canvas, uint8 (H,W): classes or VOID, nearest pixels.

    `lookup` (256,) is what each number in the file means, -1 for nothing. Raises UserError naming a
    mask that cannot be read, is in colours, is of another size than its image, or holds a number
    that means nothing.
    """
    with opened(mask, "mask") as file:
        if file.mode not in INDEXED:
            raise UserError(
                f"the mask {mask} holds {file.mode} pixels: save it as an 8-bit image of class "
                f"indices"
            )
        numbers = np.asarray(file, dtype=np.uint8)  # the indices of a palette, not its colours
    size = size_of(image)
    if numbers.shape != size:
        raise UserError(
            f"the mask {mask} is {_by(numbers.shape)} and its image {image} is {_by(size)}: give "
            f"both the same size"
        )
    classes = lookup[numbers]
    if (classes < 0).any():
        raise UserError(
            f"the mask {mask} holds the index {numbers[classes < 0].max()}, which is no class of "
            f"this data set: mend it, or mark these pixels {VOID} for void"
        )
    as_image = Image.fromarray(classes.astype(np.uint8))
    return canvas.painted(as_image, Image.Resampling.NEAREST, VOID)


def _by(size: tuple[int, ...]) -> str:
    return f"{size[1]}x{size[0]}"
