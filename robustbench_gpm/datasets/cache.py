"""Decoded images kept on disk, so that only the first start pays for decoding."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from ..core import UserError
from .base import LoadOptions, Split, SplitName
from .decode import Pixels, decode_all
from .folders import Listing

FORMAT = 1  # raise it when the same files would decode to other bytes


def load_listing(
    listing: Listing, root: Path, split: SplitName, size: int, resize: bool, options: LoadOptions
) -> Split:
    """The files of a listing as a split of images (N,3,size,size), memory-mapped from the cache.

    Raises UserError if an image cannot be read or the cache cannot be written.
    """
    place = options.cache_dir.expanduser() / _name(listing, root, split, size, resize)
    shape = (len(listing.files), 3, size, size)
    if not place.exists():
        paths = [Path(file.path) for file in listing.files]
        _keep(place, shape, decode_all(paths, size, resize, f"decoding {root.name}/{split}"))
    return Split(_mapped(place, shape), listing.labels, listing.index, listing.classes)


def _name(listing: Listing, root: Path, split: SplitName, size: int, resize: bool) -> str:
    prefix, root = len(str(root)), root.resolve()
    digest = hashlib.sha256(repr((FORMAT, str(root), split, size, resize)).encode())
    for file in listing.files:
        digest.update(repr((file.path[prefix:], file.size, file.modified)).encode())
    return f"{root.name}-{split}-{size}-{digest.hexdigest()[:24]}.npy"


def _keep(place: Path, shape: tuple[int, ...], images: Iterable[Pixels]) -> None:
    """Write the images as an .npy of this shape, all of them or nothing."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=place.parent, prefix=".decoding-", suffix=".npy")
    except OSError as problem:
        raise _unwritable(place.parent, problem) from None
    try:
        with os.fdopen(handle, "wb") as file:
            _write(file, shape, images)
        Path(temporary).replace(place)
    except OSError as problem:
        raise _unwritable(place.parent, problem) from None
    finally:
        Path(temporary).unlink(missing_ok=True)


def _write(file: IO[bytes], shape: tuple[int, ...], images: Iterable[Pixels]) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    for image in images:
        file.write(image.data)


def _mapped(place: Path, shape: tuple[int, ...]) -> Tensor:
    try:
        # Copy-on-write: torch wants a writable array, and nothing may reach the file.
        images = np.load(place, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError):
        images = np.empty(0)
    if images.shape != shape or images.dtype != np.uint8:
        raise UserError(f"the cached images {place} are damaged: delete that file") from None
    return torch.from_numpy(images)


def _unwritable(folder: Path, problem: OSError) -> UserError:
    return UserError(
        f"cannot keep decoded images in {folder} ({problem.strerror}): "
        f"give a writable folder with --cache_dir"
    )
