"""Clips to bytes: the frames asked for, of a video file or of a file a frame; kept on disk."""

from __future__ import annotations

import hashlib
import importlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from ..core import UserError
from .base import LoadOptions, Split, SplitName
from .cache import ensure, mapped
from .clip_files import Clip, ClipListing, evenly, too_short
from .decode import Pixels, fitted, open_rgb, planes

FORMAT = 1  # raise it when the same files would decode to other bytes
COLOURS = 3
CHUNK = 32  # clips decoded before they are handed on: bounds the memory that they take
RECENT = 256  # frames kept for the next clips, where clips overlap


class Frame(NamedTuple):
    """A frame (3,size,size), and the size of the file that it was made of."""

    pixels: Pixels
    width: int
    height: int


Read = Callable[[str], Frame]


def load_clips(
    listing: ClipListing, root: Path, split: SplitName, frames: int, size: int, options: LoadOptions
) -> Split:
    """The clips of a listing as a split (N,frames*3,size,size), memory-mapped from the cache.

    A frame's shorter side becomes `size` and the centre is cut out. `root` is the resolved folder
    that the listing is of. Raises UserError, naming the file, for a clip that cannot be read or has
    too few frames, and if the cache cannot be written.
    """
    place = options.cache_dir.expanduser() / _name(listing, root, split, frames, size)
    shape = (len(listing.clips), frames * COLOURS, size, size)
    ensure(place, shape, decode_clips(listing.clips, frames, size, f"{root.name}/{split}"))
    return Split(mapped(place, shape), listing.labels, listing.index, listing.classes, frames)


def decode_clips(clips: Sequence[Clip], frames: int, size: int, title: str) -> Iterator[Pixels]:
    """All clips (frames*3,size,size) in order, decoded in threads, with a progress bar.

    The bar goes to stderr, and only if that is a terminal.
    """
    threads = min(8, os.cpu_count() or 1)
    read = lru_cache(RECENT)(partial(_frame, size=size))
    with (
        ThreadPoolExecutor(threads) as pool,
        tqdm(total=len(clips), desc=f"decoding {title}", unit="clip", disable=None) as bar,
    ):
        for start in range(0, len(clips), CHUNK):
            chunk = clips[start : start + CHUNK]
            yield from pool.map(partial(decode_clip, frames=frames, size=size, read=read), chunk)
            bar.update(len(chunk))


def decode_clip(clip: Clip, frames: int, size: int, read: Read) -> Pixels:
    """One clip, uint8 (frames*3,size,size), frame after frame; `read` reads a frame's own file.

    Raises UserError for files of different sizes, which cannot be of one recording.
    """
    if clip.video:
        return np.concatenate(_video_frames(clip.path, frames, size))
    read_frames = [read(file.path) for file in clip.files]
    first = read_frames[0]
    for file, frame in zip(clip.files, read_frames, strict=True):
        if (frame.width, frame.height) != (first.width, first.height):
            raise UserError(
                f"the frame {file.path} is {frame.width}x{frame.height}, and others of its clip "
                f"are {first.width}x{first.height}: give all the same size"
            )
    return np.concatenate([frame.pixels for frame in read_frames])


def _frame(path: str, size: int) -> Frame:
    rgb = open_rgb(Path(path))
    return Frame(planes(fitted(rgb, size)), rgb.width, rgb.height)


def _video_frames(path: str, frames: int, size: int) -> list[Pixels]:
    """Frames (3,size,size) at even places of a video.

    How many frames a file holds is known only when all are decoded. What its head says is taken for
    true at first; where it was not, or it says nothing, the file is decoded once more.
    """
    count = _announced(path)
    for _ in range(3):
        wanted = evenly(count, frames) if count >= frames else []
        found, decoded = _decoded(path, wanted, size)
        if decoded < frames:
            raise too_short(path, decoded, frames)
        if decoded == count:
            return found
        count = decoded
    raise _unreadable(path, "it decodes to another number of frames each time")


def _announced(path: str) -> int:
    """How many frames a video's head speaks of, 0 if of none."""
    with _opened(path) as (_, stream):
        return int(stream.frames)


def _decoded(path: str, wanted: Sequence[int], size: int) -> tuple[list[Pixels], int]:
    """The frames at the places wanted, and how many frames there are."""
    places, found, count = set(wanted), [], 0
    with _opened(path) as (container, stream):
        for count, frame in enumerate(container.decode(stream), start=1):
            if count - 1 in places:
                found.append(planes(fitted(frame.to_image(), size)))
    return found, count


@contextmanager
def _opened(path: str) -> Iterator[tuple[Any, Any]]:
    """An open video file and its first video stream; what FFmpeg says is told in a sentence."""
    av = _pyav()
    try:
        with av.open(path) as container:
            if not container.streams.video:
                raise _unreadable(path, "it holds no pictures")
            yield container, container.streams.video[0]
    except av.FFmpegError as problem:
        raise _unreadable(path, str(problem)) from None


def _unreadable(path: str, why: str) -> UserError:
    return UserError(f"cannot read the video {path} ({why}): mend or remove it")


def _pyav() -> Any:
    try:
        return importlib.import_module("av")
    except ModuleNotFoundError:
        raise UserError(
            "video files are decoded by PyAV, which is not installed: run pip install "
            "'robustbench_gpm[video]', or give folders of frames"
        ) from None


def _name(listing: ClipListing, root: Path, split: SplitName, frames: int, size: int) -> str:
    prefix = len(str(root))
    digest = hashlib.sha256(repr(("clips", FORMAT, str(root), split, frames, size)).encode())
    for clip in listing.clips:
        for file in clip.files:
            digest.update(repr((file.path[prefix:], file.size, file.modified)).encode())
    return f"{root.name}-{split}-{frames}x{size}-{digest.hexdigest()[:24]}.npy"
