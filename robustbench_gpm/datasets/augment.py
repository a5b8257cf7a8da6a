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
    """train: random, on a uint8 image (C,H,W); evaluate: fixed, on one or many; None: nothing."""

    train: Transform | None = None
    evaluate: Transform | None = None


def prepared(split: Split, augmentation: Augmentation) -> Split:
    """The split with the evaluation transform applied; the same object if there is none."""
    if augmentation.evaluate is None:
        return split
    chunks = [augmentation.evaluate(chunk) for chunk in torch.split(split.images, CHUNK)]
    return replace(split, images=torch.cat(chunks))


def none(size: int) -> Augmentation:  # noqa: ARG001 - every augmentation is asked for by size
    """The images as they are."""
    return Augmentation()


def crop_flip(size: int) -> Augmentation:
    """A random crop after 4 pixels of black all round, and a coin for the mirror image."""
    steps = [v2.RandomCrop(size, padding=4), v2.RandomHorizontalFlip()]
    return Augmentation(train=v2.Compose(steps))


def resize_crop_flip(size: int) -> Augmentation:
    """Enlarged to 36/32 of the size, then a random crop and a mirror image; evaluated: the centre.

    That of the flow-gradient paper's code (Xia and Li, arXiv 2008.12997).
    """
    larger = v2.Resize(round(size * 36 / 32), antialias=True)
    train = v2.Compose([larger, v2.RandomCrop(size), v2.RandomHorizontalFlip()])
    return Augmentation(train, v2.Compose([larger, v2.CenterCrop(size)]))


def shift(size: int) -> Augmentation:
    """A shift of up to an eighth of the size, in whole pixels, over black; never mirrored.

    For images whose meaning a mirror changes, such as digits.
    """
    return Augmentation(train=v2.RandomCrop(size, padding=max(1, size // 8)))


def imagenet(size: int) -> Augmentation:
    """A random part of the image (8% to all of it) resized to the size, and a mirror image."""
    steps = [v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip()]
    return Augmentation(train=v2.Compose(steps))


AUGMENTATIONS: Table[Callable[[int], Augmentation]] = Table(
    "augmentation",
    {
        "none": none,
        "crop_flip": crop_flip,
        "resize_crop_flip": resize_crop_flip,
        "shift": shift,
        "imagenet": imagenet,
    },
)
