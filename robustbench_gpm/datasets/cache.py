"""Decoded images kept on disk, so that only the first start pays for decoding."""

from __future__ import annotations

import contextlib
import hashlib
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from ..core import UserError
from .base import LoadOptions, Split, SplitName
from .decode import Pixels, decode, decoded
from .folders import Listing

FORMAT = 1  # raise it when the same files would decode to other bytes


def load_listing(
    listing: Listing, root: Path, split: SplitName, size: int, resize: bool, options: LoadOptions
) -> Split:
    """The files of a listing as a split of images (N,3,size,size), memory-mapped from the cache.

    `root` is the resolved folder that the listing is of.
    Raises UserError if an image cannot be read or the cache cannot be written.
    """
    place = options.cache_dir.expanduser() / _name(listing, root, split, size, resize)
    shape = (len(listing.files), 3, size, size)
    paths = [Path(file.path) for file in listing.files]
    title = f"{root.name}/{split}"
    ensure(place, shape, decoded(lambda path: decode(path, size, resize), paths, title))
    return Split(mapped(place, shape), listing.labels, listing.index, listing.classes)


def _name(listing: Listing, root: Path, split: SplitName, size: int, resize: bool) -> str:
    prefix = len(str(root))
    digest = hashlib.sha256(repr((FORMAT, str(root), split, size, resize)).encode())
    for file in listing.files:
        digest.update(repr((file.path[prefix:], file.size, file.modified)).encode())
    return f"{root.name}-{split}-{size}-{digest.hexdigest()[:24]}.npy"


def ensure(place: Path, shape: tuple[int, ...], images: Iterable[Pixels]) -> None:
    """If `place` is missing, write the images there as an .npy of this shape: all or nothing."""
    temporary = place.with_name(f".{place.name}.{uuid.uuid4().hex}")
    try:
        if place.exists():
            return
        place.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            _write(file, shape, images)
        temporary.replace(place)
    except OSError as problem:
        raise UserError(
            f"cannot keep decoded images in {place.parent} ({problem.strerror}): "
            f"give a writable folder with --cache_dir"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _write(file: IO[bytes], shape: tuple[int, ...], images: Iterable[Pixels]) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    for image in images:
        file.write(image.data)


def mapped(place: Path, shape: tuple[int, ...]) -> Tensor:
    """The bytes in the file `place`, memory-mapped. Raises UserError for another shape."""
    try:
        # Copy-on-write: torch wants a writable array, and nothing may reach the file.
        images = np.load(place, mmap_mode="c", allow_pickle=False)
    except (OSError, EOFError, ValueError):
        images = np.empty(0)
    if images.shape != shape or images.dtype != np.uint8:
        raise UserError(
            f"cannot use the cached images {place}: delete that file to have them decoded again"
        ) from None
    return torch.from_numpy(images)
