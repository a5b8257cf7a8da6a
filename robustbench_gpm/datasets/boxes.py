"""Images with boxes: one canvas a data set, and labels that follow their images onto it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..core import UserError
from .base import LoadOptions, Split, SplitName
from .cache import ensure, mapped
from .canvas import Canvas, common_canvas
from .decode import Pixels, decoded, open_rgb
from .shuffle import hold_out

FORMAT = 1  # raise it when the same files would decode to other bytes
TOLERANCE = 1.0  # pixels by which a box may leave its image, and is cut


class Box(NamedTuple):
    """Edges in the pixels of its image, from 0 to width and height, and the name of its class."""

    x1: float
    y1: float
    x2: float
    y2: float
    name: str
    ignored: bool = False  # a difficult object: not to be learnt, and no error to find


@dataclass(frozen=True)
class BoxedImage:
    """An image file of width x height pixels and its boxes; `source` is the file with the boxes."""

    path: Path
    width: int
    height: int
    boxes: tuple[Box, ...]
    source: Path


Parts = dict[SplitName, tuple[BoxedImage, ...]]


def checked(box: Box, width: int, height: int, source: Path) -> Box:
    """`box` cut to its image. Raises UserError where it is empty, reversed, or leaves the image.

    By up to a pixel it may: there are annotations that count edges in a way of their own.
    """
    told = f"{box.name} at ({box.x1:g}, {box.y1:g}, {box.x2:g}, {box.y2:g})"
    if not all(np.isfinite(box[:4])) or box.x2 <= box.x1 or box.y2 <= box.y1:
        raise UserError(f"{source} has an empty or reversed box ({told}): mend or remove it")
    far = (-box.x1, -box.y1, box.x2 - width, box.y2 - height)
    cut = Box(
        *(max(0.0, box.x1), max(0.0, box.y1), min(float(width), box.x2)),
        *(min(float(height), box.y2), box.name, box.ignored),
    )
    if max(far) > TOLERANCE or cut.x2 <= cut.x1 or cut.y2 <= cut.y1:
        raise UserError(
            f"{source} has a box outside its image of {width}x{height} ({told}): mend or remove it"
        )
    return cut


def require_boxes(images: Iterable[BoxedImage], root: Path) -> None:
    """Raise UserError where none of these images, which are to be learnt from, has a box."""
    if not any(image.boxes for image in images):
        raise UserError(
            f"no training image of {root} has a box, and there is nothing to learn: add annotations"
        )


def load_boxes(
    parts: Parts, classes: tuple[str, ...], root: Path, split: SplitName, options: LoadOptions
) -> Split:
    """A split of images (N,3,H,W), memory-mapped from the cache, and labels float32 (N,M,5).

    Rows (x1,y1,x2,y2,class) in pixels of the canvas, padded with rows of -1 up to the most boxes of
    any image of any split. An ignored object of class c has the class -2 - c; an image without any
    is background. The canvas is that of all splits together. Where there is no validation split it
    is held out of train. Raises UserError, naming the file, for what cannot be read.
    """
    every = [image for part in parts.values() for image in part]
    require_boxes(parts.get("train", ()), root)
    canvas = common_canvas([(i.height, i.width) for i in every], options.image_size)
    rows = max(1, *(len(image.boxes) for image in every))
    images, index = _chosen(parts, split, options.validation_share)
    labels = torch.full((len(images), rows, 5), -1.0)
    for place, image in enumerate(images):
        for row, box in enumerate(image.boxes):
            labels[place, row] = torch.tensor(_on_canvas(box, image, canvas, classes))
    place_kept = options.cache_dir.expanduser() / _name(images, root, split, canvas)
    shape = (len(images), 3, canvas.height, canvas.width)
    ensure(
        place_kept,
        shape,
        decoded(lambda image: _painted(image, canvas), images, f"{root.name}/{split}"),
    )
    return Split(mapped(place_kept, shape), labels, index, classes)


def _chosen(parts: Parts, split: SplitName, share: float) -> tuple[list[BoxedImage], Tensor]:
    """The images of a split, and their places in the part that they come from."""
    source: SplitName = "train" if split == "validation" and split not in parts else split
    images = parts.get(source, ())
    index = torch.arange(len(images))
    if "validation" not in parts and split != "test":
        held = hold_out(torch.zeros_like(index), share)
        index = index[held if split == "validation" else ~held]
    return [images[place] for place in index.tolist()], index


def _on_canvas(
    box: Box, image: BoxedImage, canvas: Canvas, classes: tuple[str, ...]
) -> tuple[float, float, float, float, float]:
    top, left, height, width = canvas.place(image.height, image.width)
    across, down = width / image.width, height / image.height
    number = classes.index(box.name)
    return (
        left + box.x1 * across,
        top + box.y1 * down,
        left + box.x2 * across,
        top + box.y2 * down,
        float(-2 - number if box.ignored else number),
    )


def _name(images: Sequence[BoxedImage], root: Path, split: SplitName, canvas: Canvas) -> str:
    digest = hashlib.sha256(repr((FORMAT, str(root), split, canvas)).encode())
    for image in images:
        try:
            state = image.path.stat()
        except OSError as problem:
            raise UserError(
                f"{image.source} is of the image {image.path}, which cannot be read "
                f"({problem.strerror}): add the image, or take it off the list"
            ) from None
        name = image.path.relative_to(root).as_posix()
        digest.update(repr((name, state.st_size, state.st_mtime_ns)).encode())
        digest.update(repr((image.width, image.height)).encode())
    return f"{root.name}-{split}-{canvas.height}x{canvas.width}-{digest.hexdigest()[:24]}.npy"


def _painted(image: BoxedImage, canvas: Canvas) -> Pixels:
    rgb = open_rgb(image.path)
    if rgb.size != (image.width, image.height):
        raise UserError(
            f"{image.source} says that {image.path.name} is {image.width}x{image.height}, and it "
            f"is {rgb.width}x{rgb.height}: mend the annotation or the image"
        )
    return canvas.photograph(rgb)
