"""What a data set is: splits of images in memory, and how to load and train on them by default."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ..core import UserError
from .shuffle import LIMIT, fixed_order

SplitName = Literal["train", "validation", "test"]


@dataclass(frozen=True, eq=False)
class Split:
    """One split of a data set, as bytes.

    images: uint8 (N,C,H,W), possibly backed by a memory map, of a clip its frames one after another
    as channels; index: int64 (N,), each sample's place in its source, which stays with it through
    `limit` and shuffling; classes: the names that the labels count; frames: of a clip, 1 for
    images. labels, by task:

        classes  int64 (N,), or float (N,K) where several may hold at once
        masks    uint8 (N,H,W), a class a pixel; VOID where none counts
        boxes    float (N,M,5), rows x1, y1, x2, y2, class in pixels; rows of -1 hold no box
    """

    images: Tensor
    labels: Tensor
    index: Tensor
    classes: tuple[str, ...]
    frames: int = 1

    def __post_init__(self) -> None:
        if not len(self.images) == len(self.labels) == len(self.index):
            raise ValueError("images, labels and index differ in length")
        if self.images.dtype != torch.uint8 or self.images.dim() != 4:
            raise ValueError("images are not uint8 of shape (N,C,H,W)")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def height_if_not_square(self) -> int | None:
        """The images' height, and None where it is their width too."""
        height, width = self.images.shape[-2:]
        return None if height == width else height

    def batch(self, rows: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Images, float32 (B,C,H,W) in [0,1], and labels (B,...) of these rows."""
        return as_float(self.images[rows]), counted(self.labels[rows])

    def limit(self, n: int) -> Split:
        """The first `n` samples (all, if there are fewer) of one fixed shuffle.

        `limit(a)` is the beginning of `limit(b)` for every a <= b. Raises UserError for n < 1.
        """
        if n < 1:
            raise UserError(f"a limit of {n} samples leaves nothing to work on: ask for 1 or more")
        rows = fixed_order(self.index, LIMIT)[:n]
        images, labels, index = self.images[rows], self.labels[rows], self.index[rows]
        return Split(images, labels, index, self.classes, self.frames)

    def shown(self, image: Tensor) -> Tensor:
        """What a picture shows of an image (C,H,W): of a clip the frame in the middle."""
        each = len(image) // self.frames
        return image[self.frames // 2 * each :][:each]

    def fingerprint(self) -> str:
        """The first 16 hexadecimal digits of the SHA-256 of images, labels, index and classes."""
        digest = hashlib.sha256(json.dumps([list(self.images.shape), self.classes]).encode())
        for part in (*torch.split(self.images, 1024), self.labels, self.index):
            digest.update(part.contiguous().numpy().data)
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Recipe:
    """How a data set is trained on when nothing else is asked: SGD, and x0.1 at each milestone."""

    epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    momentum: float
    schedule: Literal["cosine", "linear", "multistep"]
    milestones: tuple[int, ...]
    augment: str


@dataclass(frozen=True)
class LoadOptions:
    """Where the images are and how to take them. Raises UserError for values outside their ranges.

    data_path: the folder of the images; cache_dir: where decoded images are kept; image_size: side
    in pixels, or height of a canvas; frames: of a clip; validation_share: how much of train is held
    out, in [0, 1); download: whether to fetch what is missing.
    """

    data_path: Path | None
    cache_dir: Path
    image_size: int | None = None
    frames: int | None = None
    validation_share: float = 0.1
    download: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.validation_share < 1:
            raise UserError(
                f"the validation share must be at least 0 and below 1, not {self.validation_share}"
            )
        if self.frames is not None and self.frames < 1:
            raise UserError(f"a clip needs at least one frame, not {self.frames}")
        if self.image_size is not None and self.image_size < 1:
            raise UserError(f"the image size must be at least 1 pixel, not {self.image_size}")

    def fixed_size(self, name: str, size: int) -> None:
        """Raise UserError if another size is asked of a data set that comes in one size only."""
        if self.image_size not in {None, size}:
            raise UserError(
                f"{name} images are {size}x{size} and are not resized: leave the image size out "
                f"or load them as imagefolder"
            )


@dataclass(frozen=True)
class DataSpec:
    """A data set: its task, what to train on it by default, its statistics and how to load it.

    mean and std are for each channel, of images in [0,1]; of clips, for each channel of a frame.
    """

    name: str
    task: str
    default_model: str
    recipe: Recipe
    mean: tuple[float, ...]
    std: tuple[float, ...]
    load: Callable[[LoadOptions, SplitName], Split]


def counted(labels: Tensor) -> Tensor:
    """Labels as losses take them: masks as int64, others as they are."""
    return labels.long() if labels.dtype == torch.uint8 else labels


def as_float(images: Tensor) -> Tensor:
    """Bytes as float32 in [0,1]."""
    return images.to(torch.float32).div_(255)
