"""Image files to bytes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

from ..core import UserError

Pixels = npt.NDArray[np.uint8]

CHUNK = 256  # images decoded before they are handed on: bounds the memory that large ones take


def decode(path: Path, size: int, resize: bool) -> Pixels:
    """One image file as uint8 (3,size,size), RGB whatever it was.

    With `resize` the shorter side becomes `size` (bilinear, antialiased) and the centre is cut out;
    without, the file must have that size. Raises UserError naming the file.
    """
    try:
        with Image.open(path) as image:
            deep = image.mode.startswith(("I", "F"))
            rgb = image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as problem:
        raise UserError(f"cannot read the image {path} ({problem}): mend or remove it") from None
    if deep:  # RGB would clip it to white
        raise UserError(f"the image {path} has more than 8 bits a channel: convert it to 8 bits")
    if resize:
        rgb = _fitted(rgb, size)
    elif rgb.size != (size, size):
        raise UserError(
            f"the image {path} is {rgb.width}x{rgb.height} where {size}x{size} is expected: "
            f"use --data_name imagefolder, which resizes"
        )
    return np.ascontiguousarray(np.asarray(rgb, dtype=np.uint8).transpose(2, 0, 1))


def decode_all(paths: Sequence[Path], size: int, resize: bool, title: str) -> Iterator[Pixels]:
    """The images (3,size,size) of all files in order, decoded in threads, with a progress bar.

    The bar goes to stderr, and only if that is a terminal.
    """
    threads = min(8, os.cpu_count() or 1)
    with (
        ThreadPoolExecutor(threads) as pool,
        tqdm(total=len(paths), desc=title, unit="image", disable=None) as bar,
    ):
        for start in range(0, len(paths), CHUNK):
            chunk = paths[start : start + CHUNK]
            yield from pool.map(lambda path: decode(path, size, resize), chunk)
            bar.update(len(chunk))


def _fitted(image: Image.Image, size: int) -> Image.Image:
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))
