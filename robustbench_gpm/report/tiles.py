"""What animations are made of: enlarged images with a few words, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

SMALLEST, LARGEST = 192, 320  # pixels along an image's longer side
MARGIN, LETTER, LINE = 8, 13, 18  # pixels


def enlarged(image: NDArray[np.float32], *, smooth: bool) -> Image.Image:
    """An image (C,H,W) in [0,1], a whole number of times as large; a very large one is shrunk."""
    levels = (255 * image).round().astype(np.uint8)
    picture = Image.fromarray(levels.transpose(1, 2, 0) if len(levels) == 3 else levels[0])
    picture.thumbnail((LARGEST, LARGEST), Image.Resampling.BOX)
    times = -(-SMALLEST // max(picture.size))
    how = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    return picture.resize((times * picture.width, times * picture.height), how)


def captioned(picture: Image.Image, above: Sequence[str], below: str) -> Image.Image:
    """A picture with lines of text above and below."""
    width = max(picture.width, SMALLEST)
    top = len(above) * LINE + 4
    canvas = Image.new(picture.mode, (width, top + picture.height + LINE + 2), "white")
    canvas.paste(picture, ((width - picture.width) // 2, top))
    pen = ImageDraw.Draw(canvas)
    for number, text in enumerate(above):
        _write(pen, text, number * LINE, width)
    _write(pen, below, top + picture.height + 2, width)
    return canvas


def _write(pen: ImageDraw.ImageDraw, text: str, y: int, room: int) -> None:
    """A line of text in the middle, in smaller print where it would be wider than `room`."""
    path = Path(mpl.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"  # the letters of the figures
    size = LETTER
    font = ImageFont.truetype(path, size)
    while font.getlength(text) > room and size > 6:
        size -= 1
        font = ImageFont.truetype(path, size)
    pen.text((room / 2, y + LINE / 2), text, fill="black", font=font, anchor="mm")


def side_by_side(tiles: Sequence[Image.Image]) -> Image.Image:
    """Tiles in a row, level at the bottom."""
    height = max(tile.height for tile in tiles)
    width = sum(tile.width for tile in tiles) + MARGIN * (len(tiles) + 1)
    frame = Image.new(tiles[0].mode, (width, height + 2 * MARGIN), "white")
    left = MARGIN
    for tile in tiles:
        frame.paste(tile, (left, MARGIN + height - tile.height))
        left += tile.width + MARGIN
    return frame


def stacked(rows: Sequence[Image.Image]) -> Image.Image:
    """Pictures below each other, level at the left."""
    width = max(row.width for row in rows)
    frame = Image.new(rows[0].mode, (width, sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        frame.paste(row, (0, top))
        top += row.height
    return frame
