"""Where segmentation data sets keep their images and masks: CamVid, Pascal VOC, Cityscapes, ADE20K.

The masks of some test splits are secret. Their validation split serves as the test split, and
validation is held out of train.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torchvision.datasets import Cityscapes, VOCSegmentation

from ..core import UserError
from ..masks import VOID
from .base import LoadOptions, SplitName
from .cifar import patient_download
from .folders import SUFFIXES, ImageFile, data_root
from .masks import MaskSource, Pair
from .shuffle import hold_out

Pairs = tuple[Pair, ...]

# The first eleven of the twelve indices of the common 11-class version; the last is void.
CAMVID_CLASSES = (
    *("sky", "building", "pole", "road", "pavement", "tree"),
    *("sign", "fence", "car", "pedestrian", "bicyclist"),
)
VOC_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair"),
    *("cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)
ADE20K_CLASSES = 150
CITYSCAPES_CLASSES: dict[int, str] = {
    entry.train_id: entry.name for entry in Cityscapes.classes if 0 <= entry.train_id < VOID
}


def camvid(options: LoadOptions) -> MaskSource:
    """DATA_PATH/{train,val,test}/* with DATA_PATH/{train,val,test}annot/<the same name>.png.

    Masks count 11 classes from 0; 11 is void (Badrinarayanan et al. 2017, arXiv 1511.00561). A
    split whose folder is absent is left out. Raises UserError for an image without its mask.
    """
    root = data_root("camvid", options)
    folders: dict[SplitName, str] = {"train": "train", "validation": "val", "test": "test"}
    pairs = {
        split: _beside(root / folder, root / f"{folder}annot")
        for split, folder in folders.items()
        if (root / folder).is_dir()
    }
    if not pairs:
        raise UserError(f"{root} holds no train, val or test folder: give the folder of camvid")
    codes = {code: code for code in range(len(CAMVID_CLASSES))} | {len(CAMVID_CLASSES): VOID}
    return MaskSource("camvid", root, pairs, {}, CAMVID_CLASSES, codes)


def voc(options: LoadOptions) -> MaskSource:
    """Pascal VOC 2012 as torchvision keeps it, DATA_PATH/VOCdevkit/VOC2012; downloaded if missing.

    20 classes and the background; 255, the objects' edges, is void. Raises UserError where the data
    set cannot be had.
    """
    base = (options.data_path or Path("data")).expanduser().resolve()
    if "VOCdevkit" in base.parts:
        raise UserError(
            f"--data_path {base} lies in VOCdevkit: give the folder that holds VOCdevkit"
        )
    root = base / "VOCdevkit" / "VOC2012"
    if not root.is_dir():
        _download_voc(base, options)
    train, val = (_by_torchvision(VOCSegmentation, base, image_set=s) for s in ("train", "val"))
    pairs, index = held_out(_pairs(train.images, train.masks), options.validation_share)
    pairs["test"] = _pairs(val.images, val.masks)
    codes = {code: code for code in range(len(VOC_CLASSES))}
    return MaskSource("voc", root, pairs, index, VOC_CLASSES, codes)


def _download_voc(base: Path, options: LoadOptions) -> None:
    advice = f"unpack it as {base}/VOCdevkit/VOC2012, or point --data_path elsewhere"
    if not options.download:
        raise UserError(f"voc is not in {base}, and downloading is off: {advice}")
    try:
        with patient_download():
            VOCSegmentation(str(base), image_set="train", download=True)
    except Exception as problem:  # whatever a download raises
        raise UserError(
            f"voc is not in {base}, and the download failed ({problem}): {advice}"
        ) from None


def cityscapes(options: LoadOptions) -> MaskSource:
    """Cityscapes as torchvision reads it: DATA_PATH/leftImg8bit and DATA_PATH/gtFine.

    The masks are *_gtFine_labelIds.png. Of their ids, those with a train id, 0..18 in torchvision's
    table of classes, count; all others are void. Raises UserError where the folders are not there.
    """
    root = data_root("cityscapes", options)
    train, val = (
        _by_torchvision(Cityscapes, root, split=s, target_type="semantic") for s in ("train", "val")
    )
    pairs, index = held_out(_pairs(train.images, train.targets), options.validation_share)
    pairs["test"] = _pairs(val.images, val.targets)
    codes = {entry.id: entry.train_id for entry in Cityscapes.classes if entry.id >= 0}
    classes = tuple(CITYSCAPES_CLASSES[place] for place in range(len(CITYSCAPES_CLASSES)))
    return MaskSource("cityscapes", root, pairs, index, classes, codes)


def ade20k(options: LoadOptions) -> MaskSource:
    """ADE20K of the 2016 challenge: DATA_PATH/{images,annotations}/{training,validation}/*.

    DATA_PATH is ADEChallengeData2016 or the folder that holds it. In the masks 0 is void, and
    1..150 are classes, named as in objectInfo150.txt where that file is there, else by their
    numbers. Raises UserError where the folders are absent.
    """
    root = data_root("ade20k", options)
    if (root / "ADEChallengeData2016").is_dir():
        root = root / "ADEChallengeData2016"
    found = {
        part: _beside(root / "images" / part, root / "annotations" / part)
        for part in ("training", "validation")
    }
    pairs, index = held_out(found["training"], options.validation_share)
    pairs["test"] = found["validation"]
    codes = {0: VOID} | {code: code - 1 for code in range(1, ADE20K_CLASSES + 1)}
    return MaskSource("ade20k", root, pairs, index, _ade_classes(root), codes)


def _ade_classes(root: Path) -> tuple[str, ...]:
    """Names out of objectInfo150.txt: a header, then tab-separated lines that end in the names."""
    numbered = tuple(f"class {place}" for place in range(1, ADE20K_CLASSES + 1))
    try:
        lines = (root / "objectInfo150.txt").read_text().splitlines()[1:]
    except (OSError, UnicodeDecodeError):
        return numbered
    names = tuple(line.split("\t")[-1].split(",")[0].strip() for line in lines if line.strip())
    return names if len(names) == ADE20K_CLASSES else numbered


def held_out(
    train: Pairs, share: float
) -> tuple[dict[SplitName, Pairs], dict[SplitName, torch.Tensor]]:
    """Train in two, a fixed share of it as validation, and the pairs' places in the whole."""
    held = hold_out(torch.zeros(len(train), dtype=torch.int64), share)
    parts: dict[SplitName, torch.Tensor] = {"train": ~held, "validation": held}
    index = {split: mask.nonzero().flatten() for split, mask in parts.items()}
    return {split: tuple(train[i] for i in rows) for split, rows in index.items()}, index


def image_files(folder: Path) -> list[ImageFile]:
    """The images of a folder by name. Raises UserError if it cannot be listed, or holds none."""
    try:
        with os.scandir(folder) as entries:
            found = [
                ImageFile(entry.path, entry.stat().st_size, entry.stat().st_mtime_ns)
                for entry in entries
                if entry.name.lower().endswith(SUFFIXES) and not entry.name.startswith(".")
            ]
    except OSError as problem:
        raise UserError(f"cannot list {folder} ({problem.strerror}): check --data_path") from None
    if not found:
        raise UserError(f"{folder} holds no images ({', '.join(SUFFIXES)}): check --data_path")
    return sorted(found)


def pair_up(images: Sequence[ImageFile], masks: Mapping[str, ImageFile], place: Path) -> Pairs:
    """Each image with the mask of the same name less its ending.

    Raises UserError naming an image without a mask, or a mask without an image; `place` is where
    masks should be.
    """
    alone = set(masks) - {Path(image.path).stem for image in images}
    if alone:
        beside = Path(images[0].path).parent
        raise UserError(
            f"the mask {masks[min(alone)].path} is of no image in {beside}: add the image, or "
            f"remove the mask"
        )
    pairs = []
    for image in images:
        mask = masks.get(Path(image.path).stem)
        if mask is None:
            raise UserError(
                f"the image {image.path} has no mask in {place}: add it, or remove the image"
            )
        pairs.append(Pair(image, mask))
    return tuple(pairs)


def _beside(images: Path, masks: Path) -> Pairs:
    by_name = {Path(file.path).stem: file for file in image_files(masks)}
    return pair_up(image_files(images), by_name, masks)


def _by_torchvision(kind: Any, base: Path, **wanted: str) -> Any:
    try:
        return kind(str(base), **wanted)
    except (OSError, RuntimeError, ValueError) as problem:
        raise UserError(
            f"torchvision finds no whole {kind.__name__} in {base} ({problem}): unpack it there, "
            f"or point --data_path elsewhere"
        ) from None


def _pairs(images: Iterable[str], masks: Iterable[Any]) -> Pairs:
    """In the order of their names. Raises UserError for a file that is missing."""
    listed = ((i, m[0] if isinstance(m, list) else m) for i, m in zip(images, masks, strict=True))
    return tuple(Pair(_file(image, "image"), _file(mask, "mask")) for image, mask in sorted(listed))


def _file(path: str, what: str) -> ImageFile:
    try:
        status = os.stat(path)  # noqa: PTH116 - the path stays a string
    except OSError as problem:
        raise UserError(
            f"the {what} {path} is not there ({problem.strerror}): unpack the data set again"
        ) from None
    return ImageFile(path, status.st_size, status.st_mtime_ns)
