"""Images with masks: pairs of files on one canvas, decoded once.

All images of a data set, of every split, come on one canvas; around masks on it is void.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..core import UserError
from ..masks import VOID
from .base import LoadOptions, Split, SplitName
from .cache import ensure, mapped
from .canvas import Canvas, common_canvas
from .decode import Pixels, decoded
from .folders import ImageFile
from .mask_files import image_on, mask_on, size_of

FORMAT = 2  # raise it when the same files would decode to other bytes
SIZES_BYTES = 8  # of a height and a width as int32


class Pair(NamedTuple):
    """An image, and the file that gives its pixels their classes."""

    image: ImageFile
    mask: ImageFile


@dataclass(frozen=True, eq=False)
class MaskSource:
    """What a folder holds: the pairs of each split, and the classes.

    `codes` tells what the numbers in the mask files mean: a class, counting `classes`, or VOID.
    Other numbers are refused. `index` gives the pairs of a split their places in the source; where
    it has none for a split, they are numbered.
    """

    name: str
    root: Path
    pairs: Mapping[SplitName, tuple[Pair, ...]]
    index: Mapping[SplitName, Tensor]
    classes: tuple[str, ...]
    codes: Mapping[int, int]

    def places(self, split: SplitName) -> Tensor:
        """Where the pairs of a split stand in the source, (N,)."""
        return self.index.get(split, torch.arange(len(self.pairs[split])))


def load_masks(source: MaskSource, split: SplitName, options: LoadOptions) -> Split:
    """A split as images (N,3,H,W) and masks (N,H,W), memory-mapped from the cache.

    `options.image_size` is the canvas's height, see `common_canvas`. Raises UserError naming the
    file for an image or a mask that cannot be read, a mask of another size than its image, and a
    number in a mask that `codes` does not know.
    """
    if split not in source.pairs:
        have = ", ".join(source.pairs)
        raise UserError(
            f"{source.root} has no {split} split of {source.name}, only {have}: add its images and "
            f"masks"
        )
    canvas, lookup = _canvas(source, options), _lookup(source.codes)
    keep = _Keeper(source, split, canvas, options.cache_dir.expanduser())
    # Masks first: what is wrong with a data set is mostly in them, and they are soon through.
    masks = keep("masks", (), lambda pair: mask_on(canvas, *_paths(pair), lookup))
    if all(bool((mask == VOID).all()) for mask in masks):
        raise UserError(
            f"in the masks of the {split} split of {source.root} every pixel is void: mark some "
            f"with the classes of {source.name}"
        )
    images = keep("images", (3,), lambda pair: image_on(canvas, _paths(pair)[0]))
    return Split(images, masks, source.places(split), source.classes)


@dataclass(frozen=True)
class _Keeper:
    """Decodes a split's files into the cache, or finds them there."""

    source: MaskSource
    split: SplitName
    canvas: Canvas
    folder: Path

    def __call__(
        self, kind: str, channels: tuple[int, ...], decode: Callable[[Pair], Pixels]
    ) -> Tensor:
        """What `decode` makes of every pair, uint8 (N,*channels,H,W)."""
        pairs, root = self.source.pairs[self.split], self.source.root
        meanings = sorted(self.source.codes.items()) if kind == "masks" else []
        digest = _digest(self.source, pairs, (kind, self.canvas, meanings))
        size = f"{self.canvas.height}x{self.canvas.width}"
        place = self.folder / f"{root.name}-{self.split}-{size}-{kind}-{digest}.npy"
        shape = (len(pairs), *channels, self.canvas.height, self.canvas.width)
        ensure(place, shape, decoded(decode, pairs, f"{root.name}/{self.split} {kind}"))
        return mapped(place, shape)


def _canvas(source: MaskSource, options: LoadOptions) -> Canvas:
    """The canvas that every split of the source shares."""
    pairs = [pair for name in sorted(source.pairs) for pair in source.pairs[name]]
    if not pairs:
        raise UserError(f"{source.root} holds no images of {source.name}: check the folder")
    name = f"{source.root.name}-sizes-{_digest(source, pairs, ())}.npy"
    place, shape = options.cache_dir.expanduser() / name, (len(pairs), SIZES_BYTES)
    title = f"{source.root.name} sizes"
    ensure(place, shape, decoded(lambda p: _as_bytes(_paths(p)[0]), pairs, title))
    sizes = mapped(place, shape).numpy().view(np.int32)
    return common_canvas(sizes, options.image_size)


def _as_bytes(path: Path) -> npt.NDArray[np.uint8]:
    return np.array(size_of(path), dtype=np.int32).view(np.uint8)


def _paths(pair: Pair) -> tuple[Path, Path]:
    return Path(pair.image.path), Path(pair.mask.path)


def _lookup(codes: Mapping[int, int]) -> npt.NDArray[np.int16]:
    """The class of each number 0..255, and -1 for one that means nothing."""
    table = np.full(256, -1, dtype=np.int16)
    for code, meaning in codes.items():
        table[code] = meaning
    table[VOID] = codes.get(VOID, VOID)
    return table


def _digest(source: MaskSource, pairs: Sequence[Pair], key: tuple[object, ...]) -> str:
    prefix = len(str(source.root))
    digest = hashlib.sha256(repr((FORMAT, str(source.root), key)).encode())
    for pair in pairs:
        for file in pair:
            digest.update(repr((file.path[prefix:], file.size, file.modified)).encode())
    return digest.hexdigest()[:24]
