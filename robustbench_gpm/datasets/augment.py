"""What is done to images before training and before evaluation, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torchvision.transforms import v2

from ..core import Table
from .base import Split

Transform = Callable[[Tensor], Tensor]
CHUNK = 1024


@dataclass(frozen=True)
class Augmentation:
    """train: random, on a uint8 image (C,H,W); evaluate: fixed, on one or many; None: nothing.

    One that moves pixels is torchvision's, so that it can move masks and boxes along.
    """

    train: Transform | None = None
    evaluate: Transform | None = None


def prepared(split: Split, augmentation: Augmentation) -> Split:
    """The split with the evaluation transform applied; the same object if there is none."""
    if augmentation.evaluate is None:
        return split
    chunks = [augmentation.evaluate(chunk) for chunk in torch.split(split.images, CHUNK)]
    return replace(split, images=torch.cat(chunks))


def none(height: int, width: int) -> Augmentation:  # noqa: ARG001 - all are asked for by size
    """The images as they are."""
    return Augmentation()


def flip(height: int, width: int) -> Augmentation:  # noqa: ARG001
    """A coin for the mirror image."""
    return Augmentation(train=v2.RandomHorizontalFlip())


def crop_flip(height: int, width: int) -> Augmentation:
    """A random crop after 4 pixels of black all round, and a coin for the mirror image."""
    steps = [v2.RandomCrop((height, width), padding=4), v2.RandomHorizontalFlip()]
    return Augmentation(train=v2.Compose(steps))


def resize_crop_flip(height: int, width: int) -> Augmentation:
    """Enlarged to 36/32 of the size, then a random crop and a mirror image; evaluated: the centre.

    That of the flow-gradient paper's code (Xia and Li, arXiv 2008.12997).
    """
    size = (height, width)
    larger = v2.Resize([round(side * 36 / 32) for side in size], antialias=True)
    train = v2.Compose([larger, v2.RandomCrop(size), v2.RandomHorizontalFlip()])
    return Augmentation(train, v2.Compose([larger, v2.CenterCrop(size)]))


def shift(height: int, width: int) -> Augmentation:
    """A shift of up to an eighth of the size, in whole pixels, over black; never mirrored.

    For images whose meaning a mirror changes, such as digits.
    """
    padding = [max(1, width // 8), max(1, height // 8)]
    return Augmentation(train=v2.RandomCrop((height, width), padding=padding))


def imagenet(height: int, width: int) -> Augmentation:
    """A random part of the image (8% to all of it) resized to the size, and a mirror image."""
    return _zoomed(height, width, (0.08, 1.0))


def zoom_flip(height: int, width: int) -> Augmentation:
    """A random part of the image (a quarter to all of it) resized to the size, and a mirror image.

    Masks and boxes move along.
    """
    return _zoomed(height, width, (0.25, 1.0))


def _zoomed(height: int, width: int, share: tuple[float, float]) -> Augmentation:
    part = v2.RandomResizedCrop((height, width), scale=share, antialias=True)
    return Augmentation(train=v2.Compose([part, v2.RandomHorizontalFlip()]))


AUGMENTATIONS: Table[Callable[[int, int], Augmentation]] = Table(
    "augmentation",
    {
        "none": none,
        "flip": flip,
        "crop_flip": crop_flip,
        "resize_crop_flip": resize_crop_flip,
        "shift": shift,
        "imagenet": imagenet,
        "zoom_flip": zoom_flip,
    },
)
