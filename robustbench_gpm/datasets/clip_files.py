"""Clips in class folders: which files belong to a split, with which labels."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..core import UserError
from .base import SplitName
from .folders import SUFFIXES as IMAGES
from .folders import ImageFile, class_names, list_split, scanned
from .shuffle import hold_out

VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")
UCF_VIDEOS, UCF_LISTS = "UCF-101", "ucfTrainTestlist"
UCF_SUBJECT = re.compile(r"_g(\d+)_c\d+$")  # the clips of a group are cut from one recording


class Clip(NamedTuple):
    """What a clip is read from: a file a frame, or one file that holds them all."""

    path: str
    files: tuple[ImageFile, ...]

    @property
    def video(self) -> bool:
        """Whether it is a video file."""
        return self.path.lower().endswith(VIDEOS)


@dataclass(frozen=True, eq=False)
class ClipListing:
    """A split's clips in a fixed order, with labels (N,) or (N,K) and places (N,)."""

    clips: tuple[Clip, ...]
    labels: Tensor
    index: Tensor
    classes: tuple[str, ...]

    def select(self, mask: Tensor) -> ClipListing:
        """The clips where `mask` (N,) is true; each keeps its place in the source."""
        rows = mask.nonzero().flatten().tolist()
        clips = tuple(self.clips[row] for row in rows)
        return ClipListing(clips, self.labels[mask], self.index[mask], self.classes)


def list_clips(root: Path, split: SplitName, share: float, frames: int) -> ClipListing:
    """The clips of one split under `root`; of a folder of frames, those that `frames` asks for.

    A class folder holds clips: folders of frames, video files, or both. `root` holds
    {train,[val|validation],test}/<class>/*, or <class>/* alone, and is parted as
    `folders.list_split` parts images: Kinetics with train and val folders is one of these. Or it
    holds UCF101 as published: UCF-101/<class>/*.avi and ucfTrainTestlist, whose first split is
    taken; the validation clips are then held out group by group, as a group is one recording.
    Raises UserError for anything else, and for a folder of fewer frames.
    """
    if (root / UCF_VIDEOS).is_dir() and (root / UCF_LISTS).is_dir():
        return _ucf101(root, split, share)
    return list_split(root, split, share, partial(_scan, frames=frames))


def evenly(count: int, wanted: int) -> list[int]:
    """Which of `count` frames to take: the middle of each of `wanted` equal parts."""
    return [(2 * i + 1) * count // (2 * wanted) for i in range(wanted)]


def too_short(path: str, count: int, frames: int) -> UserError:
    """The complaint about a clip that has fewer frames than are asked for."""
    return UserError(
        f"the clip {path} has {count} frames, and {frames} are asked for: ask for fewer with "
        f"--frames, or remove it"
    )


def _scan(folder: Path, classes: tuple[str, ...], frames: int) -> ClipListing:
    clips: list[Clip] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = _clips(folder / name, frames)
        clips += found
        labels += [label] * len(found)
    index = torch.arange(len(labels))
    return ClipListing(tuple(clips), torch.tensor(labels), index, classes)


def _clips(folder: Path, frames: int) -> list[Clip]:
    with scanned(folder) as entries:
        found = sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
    clips = [_frames_of(entry.path, frames) for entry in found if entry.is_dir()]
    videos = [e for e in found if e.name.lower().endswith(VIDEOS) and e.is_file()]
    clips += [video(entry.path) for entry in videos]
    if not clips:
        raise UserError(
            f"the class folder {folder} holds no clips, that is folders of frames or videos "
            f"({', '.join(VIDEOS)}): fill it or remove it"
        )
    return sorted(clips)


def _frames_of(folder: str, frames: int) -> Clip:
    with scanned(Path(folder)) as entries:
        names = [
            entry.name
            for entry in entries
            if entry.name.lower().endswith(IMAGES) and not entry.name.startswith(".")
        ]
    if len(names) < frames:
        raise too_short(folder, len(names), frames)
    names.sort(key=_in_time)
    chosen = [names[place] for place in evenly(len(names), frames)]
    return Clip(folder, tuple(file_at(os.path.join(folder, name)) for name in chosen))  # noqa: PTH118


def _in_time(name: str) -> list[str | int]:
    """What to sort by, so that frame 2 comes before frame 10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"([0-9]+)", name)]


def video(path: str) -> Clip:
    """The clip that a video file is."""
    return Clip(path, (file_at(path),))


def file_at(path: str) -> ImageFile:
    """A file and what tells that it has changed. Raises UserError where there is none."""
    try:
        seen = os.stat(path)  # noqa: PTH116  a path object a frame would cost more than the look
    except OSError as problem:
        raise UserError(
            f"cannot read {path} ({problem.strerror}): the data set is not complete, unpack it "
            f"again"
        ) from None
    return ImageFile(path, seen.st_size, seen.st_mtime_ns)


def _ucf101(root: Path, split: SplitName, share: float) -> ClipListing:
    """Soomro et al. 2012 (arXiv 1212.0402): the lists name the clips of train and test."""
    classes = class_names(root / UCF_VIDEOS)
    names = _ucf_names(root / UCF_LISTS / f"{'test' if split == 'test' else 'train'}list01.txt")
    labels, clips = [], []
    for name in names:
        kind = name.partition("/")[0]
        if kind not in classes:
            raise UserError(
                f"{root / UCF_VIDEOS} has no class folder '{kind}', which {UCF_LISTS} names: "
                f"unpack the data set again"
            )
        labels.append(classes.index(kind))
        clips.append(video(str(root / UCF_VIDEOS / name)))
    index = torch.arange(len(labels))
    listing = ClipListing(tuple(clips), torch.tensor(labels), index, classes)
    if split == "test":
        return listing
    held = _held_groups([UCF_SUBJECT.sub(r"_g\1", Path(n).stem) for n in names], labels, share)
    return listing.select(held if split == "validation" else ~held)


def _ucf_names(path: Path) -> list[str]:
    try:
        lines = path.read_text().split("\n")
    except (OSError, UnicodeDecodeError):
        raise UserError(f"cannot read {path}: unpack the lists of UCF101 again") from None
    names = [line.split()[0] for line in lines if line.strip()]
    if not names:
        raise UserError(f"{path} names no clips: unpack the lists of UCF101 again")
    return names


def _held_groups(groups: Sequence[str], labels: Sequence[int], share: float) -> Tensor:
    """A mask (N,) of the clips to hold out, with all of a group, each of one class, or none."""
    _, first, group = np.unique(groups, return_index=True, return_inverse=True)
    held = hold_out(torch.tensor(labels)[torch.from_numpy(first)], share)
    return held[torch.from_numpy(group)]
