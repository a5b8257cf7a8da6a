"""Boxes in the layout of COCO (Lin et al. 2014, arXiv 1405.0312): one JSON file a split."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..core import UserError
from .base import LoadOptions, Split, SplitName
from .boxes import Box, BoxedImage, Parts, checked, load_boxes
from .folders import data_root
from .voc import VOC

NAME = re.compile(r"(?:instances_)?((train|val|validation|test)\d*)\.json")


def load(options: LoadOptions, split: SplitName) -> Split:
    """Images (N,3,H,W) and labels (N,M,5) of a folder that holds annotations/*.json.

    Each split has one file, named train.json, val.json or test.json, or as in COCO
    instances_train2017.json; its images lie in the folder train (train2017), images/train, or
    images. Without val, validation is held out of train; without test, val is the test split.
    Classes are the categories in the order of their ids, which may have gaps. Crowds (iscrowd) are
    left out, and an image without boxes is background. `bbox` is x, y, width and height in pixels
    from the upper left corner. Raises UserError naming the file at fault.
    """
    root = data_root("coco", options)
    parts: Parts = {}
    classes: tuple[str, ...] | None = None
    for part, (source, folder) in _files(root).items():
        own, images = _read(source, folder)
        if classes is not None and own != classes:
            odd = sorted(set(own) ^ set(classes)) or ["their order"]
            raise UserError(
                f"{source} has other categories than train ({odd[0]}): give all the same"
            )
        classes, parts[part] = own, images
    return load_boxes(parts, classes or (), root, split, options)


def _files(root: Path) -> dict[SplitName, tuple[Path, Path]]:
    """Each split's file and folder of images."""
    if not (root / "annotations").is_dir():
        raise UserError(
            f"{root} holds no folder named annotations: give the folder that holds it and the "
            f"images as --data_path"
        )
    found: dict[str, tuple[Path, Path]] = {}
    for source in sorted((root / "annotations").glob("*.json")):
        if (match := NAME.fullmatch(source.name)) is None:
            continue
        kind = "val" if match[2] == "validation" else match[2]
        if kind in found:
            raise UserError(f"{found[kind][0]} and {source} are both of the {kind} split: keep one")
        folders = (root / match[1], root / "images" / match[1], root / "images")
        folder = next((f for f in folders if f.is_dir()), None)
        if folder is None:
            raise UserError(f"there are no images for {source}: put them in {folders[0]}")
        found[kind] = source, folder
    files: dict[SplitName, tuple[Path, Path]] = {}
    if "train" in found:
        files["train"] = found["train"]
    if "test" in found:
        files["test"] = found["test"]
    if "val" in found:  # public validation sets whose test labels are secret serve as test
        files["validation" if "test" in found else "test"] = found["val"]
    for name in ("train", "test"):
        if name not in files:
            raise UserError(f"{root / 'annotations'} has no {name}.json: add that split's file")
    return files


def _read(source: Path, folder: Path) -> tuple[tuple[str, ...], tuple[BoxedImage, ...]]:
    """The classes, and the images in the order of the file."""
    try:
        whole = json.loads(source.read_text(encoding="utf-8"))
        categories = {int(c["id"]): str(c["name"]) for c in whole["categories"]}
        images = {int(i["id"]): _image(i, source, folder) for i in whole["images"]}
        if len(images) < len(whole["images"]) or not images:
            raise UserError(f"{source} needs images, each of an id of its own: mend them")
        boxes: dict[int, list[Box]] = {image: [] for image in images}
        for note in whole["annotations"]:
            if not note.get("iscrowd"):
                image = int(note["image_id"])
                if image not in images:
                    raise UserError(
                        f"{source} has a box of image {image}, which it does not list: "
                        "list the image or remove the box"
                    )
                boxes[image].append(_box(note, categories, images[image]))
    except (OSError, ValueError, OverflowError, RecursionError) as problem:
        raise UserError(f"cannot read the annotations {source} ({problem}): mend them") from None
    except (KeyError, TypeError, AttributeError) as problem:
        raise UserError(
            f"{source} is not in the format of COCO ({type(problem).__name__} at {problem}): it "
            f"needs images, categories and annotations, each a list"
        ) from None
    classes = tuple(categories[number] for number in sorted(categories))
    if len(set(classes)) != len(classes) or not classes:
        raise UserError(f"{source} needs categories, each of a name of its own: mend them")
    return classes, tuple(replace(images[i], boxes=tuple(boxes[i])) for i in images)


def _image(listed: dict[str, Any], source: Path, folder: Path) -> BoxedImage:
    path = folder / str(listed["file_name"])
    width, height = int(listed["width"]), int(listed["height"])
    if folder.resolve() not in path.resolve().parents:
        raise UserError(f"{source} lists '{listed['file_name']}', which leaves {folder}: mend it")
    if width < 1 or height < 1:
        raise UserError(f"{source} gives {path.name} a size of {width}x{height}: mend it")
    return BoxedImage(path, width, height, (), source)


def _box(note: dict[str, Any], categories: dict[int, str], image: BoxedImage) -> Box:
    number = int(note["category_id"])
    if number not in categories:
        raise UserError(f"{image.source} has a box of the unknown category {number}: list it there")
    try:
        left, top, width, height = (float(edge) for edge in note["bbox"])
    except (TypeError, ValueError):
        raise UserError(
            f"{image.source} gives {note['bbox']!r} for a box of {image.path.name}, where x, y, "
            f"width and height belong: mend it"
        ) from None
    if not math.isfinite(left + top + width + height):
        raise UserError(f"{image.source} has a box without finite edges: mend or remove it")
    box = Box(left, top, left + width, top + height, categories[number])
    return checked(box, image.width, image.height, image.source)


COCO = replace(VOC, name="coco", load=load)
