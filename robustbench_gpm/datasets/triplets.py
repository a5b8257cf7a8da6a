"""CholecT45 (Nwoye et al. 2022, arXiv 2204.05235): what instruments do to what, in surgery."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from ..core import UserError
from .base import LoadOptions, Split, SplitName
from .clip_decode import load_clips
from .clip_files import Clip, ClipListing, file_at
from .clips import CLIPS, DEFAULT_FRAMES, DEFAULT_SIZE
from .folders import ImageFile, data_root
from .shuffle import hold_out

TRIPLETS = 100
TEST_FOLD = (2, 6, 14, 23, 25, 50, 51, 66, 79)  # of the official cross-validation, fold 1
LAYOUT = "data/VIDxx/NNNNNN.png and triplet/VIDxx.txt"

Rows = npt.NDArray[np.int64]


def load(options: LoadOptions, split: SplitName) -> Split:
    """Clips (N,T*3,S,S), one for each labelled frame, with labels float32 (N,100) of 0 and 1.

    A clip is the labelled frame and the T-1 frames (one a second) before it; at the beginning of
    a video, its first frame stands for those that are missing. The layout is the published one:
    data/VIDxx/NNNNNN.png, triplet/VIDxx.txt, and dict/triplet.txt for the names, if there. The test
    split is the first fold of the official cross-validation; validation holds out whole videos of
    the others. Frames are square, S 112 by default: the sides of the wide pictures are cut off. In
    the cache each frame is in T clips. Raises UserError where something is missing or malformed.
    """
    root, frames = data_root("cholect45", options), options.frames or DEFAULT_FRAMES
    listing = _listing(root, split, options.validation_share, frames)
    return load_clips(listing, root, split, frames, options.image_size or DEFAULT_SIZE, options)


def _listing(root: Path, split: SplitName, share: float, frames: int) -> ClipListing:
    clips: list[Clip] = []
    labels, places, before = [], [], 0
    chosen = _chosen(root, split, share)
    for name in _videos(root):
        rows = _rows(root / "triplet" / f"{name}.txt")
        if name in chosen:
            clips += _clips(root / "data" / name, rows[:, 0], frames)
            labels.append(rows[:, 1:])
            places.append(before + np.arange(len(rows)))
        before += len(rows)
    hot = torch.from_numpy(np.concatenate(labels)).float()
    return ClipListing(tuple(clips), hot, torch.from_numpy(np.concatenate(places)), _names(root))


def _chosen(root: Path, split: SplitName, share: float) -> set[str]:
    """The videos of a split."""
    videos = _videos(root)
    test = [name for name in videos if int(name[3:]) in TEST_FOLD]
    rest = [name for name in videos if name not in test]
    held = hold_out(torch.zeros(len(rest), dtype=torch.int64), share).tolist()
    parts: dict[SplitName, list[str]] = {
        "test": test,
        "validation": [name for name, out in zip(rest, held, strict=True) if out],
        "train": [name for name, out in zip(rest, held, strict=True) if not out],
    }
    if not parts[split]:
        raise UserError(
            f"{root} has no videos for the {split} split (test are VID02, VID06, ... of the first "
            f"fold, validation a share of {share} of the others): add some, or hold out another "
            f"share"
        )
    return set(parts[split])


def _videos(root: Path) -> list[str]:
    names = sorted(path.stem for path in (root / "triplet").glob("VID*.txt"))
    names = [name for name in names if name[3:].isdecimal()]
    if not names:
        raise UserError(f"{root} holds no labels of CholecT45: give a folder with {LAYOUT}")
    return names


def _rows(path: Path) -> Rows:
    """Of each labelled frame, its number and 100 times 0 or 1."""
    try:
        lines = [line.split(",") for line in path.read_text().split("\n") if line.strip()]
        rows = np.array(lines, dtype=np.int64)
    except (OSError, ValueError, OverflowError):
        rows = np.empty((0, 0), dtype=np.int64)
    if rows.size == 0 or rows.shape[1] != TRIPLETS + 1 or not np.isin(rows[:, 1:], (0, 1)).all():
        raise UserError(
            f"{path} is not a label file of CholecT45: each line must be a frame's number and "
            f"{TRIPLETS} times 0 or 1, with commas between"
        )
    numbers, lines_each = np.unique(rows[:, 0], return_counts=True)
    if lines_each.max() > 1:
        raise UserError(f"{path} labels frame {numbers[lines_each.argmax()]} twice: keep one line")
    return rows


def _clips(folder: Path, numbers: Rows, frames: int) -> list[Clip]:
    first = int(numbers.min())
    known: dict[int, ImageFile] = {}

    def at(number: int) -> ImageFile:
        if number not in known:
            known[number] = file_at(str(folder / f"{number:06d}.png"))
        return known[number]

    return [
        Clip(
            str(folder / f"{last:06d}.png"),
            tuple(at(max(first, last - ago)) for ago in reversed(range(frames))),
        )
        for last in numbers.tolist()
    ]


def _names(root: Path) -> tuple[str, ...]:
    """The triplets' names, such as grasper,retract,gallbladder."""
    path = root / "dict" / "triplet.txt"
    if not path.is_file():
        return tuple(f"triplet {number}" for number in range(TRIPLETS))
    try:
        lines = path.read_text().split("\n")
    except (OSError, UnicodeDecodeError) as problem:
        raise UserError(f"cannot read {path} ({problem}): unpack it again, or remove it") from None
    pairs = (line.partition(":") for line in lines)
    named = {number.strip(): name.strip() for number, colon, name in pairs if colon}
    try:
        return tuple(named[str(number)] for number in range(TRIPLETS))
    except KeyError as missing:
        raise UserError(
            f"{path} does not name triplet {missing}: each line must be a number, a colon and the "
            f"triplet"
        ) from None


CHOLECT45 = replace(CLIPS, name="cholect45", task="multilabel", load=load)
