"""Image files to bytes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

from ..core import UserError

T = TypeVar("T")
Pixels = npt.NDArray[np.uint8]

CHUNK = 256  # images decoded before they are handed on: bounds the memory that large ones take


def decode(path: Path, size: int, resize: bool) -> Pixels:
    """One image file as uint8 (3,size,size), RGB whatever it was.

    With `resize` the shorter side becomes `size` (bilinear, antialiased) and the centre is cut out;
    without, the file must have that size. Raises UserError naming the file.
    """
    rgb = open_rgb(path)
    if resize:
        rgb = fitted(rgb, size)
    elif rgb.size != (size, size):
        raise UserError(
            f"the image {path} is {rgb.width}x{rgb.height} where {size}x{size} is expected: "
            f"use --data_name imagefolder, which resizes"
        )
    return planes(rgb)


def planes(image: Image.Image) -> Pixels:
    """An RGB image as bytes (3,H,W)."""
    return np.ascontiguousarray(np.asarray(image, dtype=np.uint8).transpose(2, 0, 1))


def open_rgb(path: Path) -> Image.Image:
    """An image file as RGB of 8 bits a channel. Raises UserError naming the file."""
    with opened(path, "image") as image:
        deep = image.mode.startswith(("I", "F"))
        rgb: Image.Image = image.convert("RGB")
    if deep:  # RGB would clip it to white
        raise UserError(f"the image {path} has more than 8 bits a channel: convert it to 8 bits")
    return rgb


@contextmanager
def opened(path: Path, what: str) -> Iterator[Image.Image]:
    """An image file, read as far as is asked. Raises UserError naming the file and `what` it is."""
    try:
        with Image.open(path) as image:
            yield image
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as problem:
        raise UserError(f"cannot read the {what} {path} ({problem}): mend or remove it") from None


def decoded(decode: Callable[[T], Pixels], items: Sequence[T], title: str) -> Iterator[Pixels]:
    """What `decode` makes of the items, in order, in threads, with a progress bar.

    The bar goes to stderr, and only if that is a terminal.
    """
    threads = min(8, os.cpu_count() or 1)
    with (
        ThreadPoolExecutor(threads) as pool,
        tqdm(total=len(items), desc=f"decoding {title}", unit="file", disable=None) as bar,
    ):
        for start in range(0, len(items), CHUNK):
            chunk = items[start : start + CHUNK]
            yield from pool.map(decode, chunk)
            bar.update(len(chunk))


def fitted(image: Image.Image, size: int) -> Image.Image:
    """The image with its shorter side brought to `size`, and its centre cut out."""
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))
