"""CaDIS: frames of cataract surgery (Grammatikopoulou et al. 2021, arXiv 1906.11586)."""

from __future__ import annotations

import re
from pathlib import Path

from ..core import UserError
from .base import LoadOptions, SplitName
from .folders import data_root
from .masks import MaskSource, Pair
from .segmentation_folders import image_files, pair_up

# Task I of the paper: the anatomy and what lies around it, and all instruments as one.
CLASSES = (
    *("pupil", "surgical tape", "hand", "eye retractors", "iris", "skin", "cornea"),
    "instrument",
)
LABELS = 36  # ids of the masks; from 7 on they are instruments, and parts of them
# The paper's parting by videos: 19 to train on, 3 to validate on and 3 to test on.
VALIDATION, TEST = (5, 7, 16), (2, 12, 22)


def cadis(options: LoadOptions) -> MaskSource:
    """DATA_PATH/Video<n>/Images/* with DATA_PATH/Video<n>/Labels/<the same name>, for task I.

    Eight classes: the 29 kinds of instruments are one. A split none of whose videos is there is
    left out. Raises UserError for a folder without videos and for an image without its mask.
    """
    root = data_root("cadis", options)
    folders = {int(n[1]): f for f in root.iterdir() if (n := re.fullmatch(r"Video(\d+)", f.name))}
    if not folders:
        raise UserError(f"{root} holds no folders named Video<number>: give the folder of cadis")
    pairs: dict[SplitName, tuple[Pair, ...]] = {}
    for number, folder in sorted(folders.items()):
        split = _split_of(number)
        pairs[split] = (*pairs.get(split, ()), *_video(folder))
    codes = {label: min(label, len(CLASSES) - 1) for label in range(LABELS)}
    return MaskSource("cadis", root, pairs, {}, CLASSES, codes)


def _split_of(video: int) -> SplitName:
    if video in VALIDATION:
        return "validation"
    return "test" if video in TEST else "train"


def _video(folder: Path) -> tuple[Pair, ...]:
    labels = {Path(file.path).stem: file for file in image_files(folder / "Labels")}
    return pair_up(image_files(folder / "Images"), labels, folder / "Labels")
