"""Images in class folders: which files belong to a split, with which labels."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from ..core import UserError
from .base import LoadOptions, SplitName
from .shuffle import hold_out

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
SPLITS = ("train", "val", "validation", "test")
TEST_SHARE = 0.2  # of a folder that comes in no splits


class ImageFile(NamedTuple):
    """A file, and what tells that it has changed."""

    path: str
    size: int
    modified: int


@dataclass(frozen=True, eq=False)
class Listing:
    """A split's files in a fixed order (by class, then by name), with labels and places (N,)."""

    files: tuple[ImageFile, ...]
    labels: Tensor
    index: Tensor
    classes: tuple[str, ...]

    def select(self, mask: Tensor) -> Listing:
        """The files where `mask` (N,) is true; each keeps its place in the source."""
        rows = mask.nonzero().flatten().tolist()
        files = tuple(self.files[row] for row in rows)
        return Listing(files, self.labels[mask], self.index[mask], self.classes)


L = TypeVar("L", bound="Parted")


class Parted(Protocol):
    """What can be parted into splits: labels (N,), and the samples where a mask (N,) is true."""

    @property
    def labels(self) -> Tensor: ...

    def select(self: L, mask: Tensor) -> L: ...


Scan = Callable[[Path, tuple[str, ...]], L]  # a folder, and the names of its class folders


def data_root(name: str, options: LoadOptions) -> Path:
    """The resolved data path. Raises UserError where there is none, or no folder at it."""
    if options.data_path is None:
        raise UserError(f"{name} needs the folder of its images: give it with --data_path")
    root = options.data_path.expanduser().resolve()
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise UserError(f"--data_path {root} {what}: give the folder that {name} is unpacked in")
    return root


def has_splits(root: Path) -> bool:
    """Whether `root` holds a folder named as a split."""
    return any((root / name).is_dir() for name in SPLITS)


def list_split(root: Path, split: SplitName, validation_share: float, scan: Scan[L]) -> L:
    """What `scan` finds of one split under `root`: images, or clips.

    `root` holds {train,[val|validation],test}/<class>/*: a missing validation split is held out of
    train, and val serves as test where there is no test. Or it holds <class>/* alone: then a fixed
    fifth of each class is the test split. Raises UserError for anything else.
    """
    if not has_splits(root):
        _look_below(root)
        whole = scan(root, class_names(root))
        test = hold_out(whole.labels, TEST_SHARE)
        if split == "test":
            return whole.select(test)
        return _part(whole.select(~test), split, validation_share)
    folders = split_folders(root)
    classes = agreed_classes(folders.values())
    if split in folders and (split != "train" or "validation" in folders):
        return scan(folders[split], classes)
    if split == "test" or "train" not in folders:
        missing = "test" if split == "test" else "train"
        raise UserError(
            f"{root} has no {missing} folder beside {', '.join(sorted(folders))}: add it, or give "
            f"a --data_path that holds class folders alone to have it split"
        )
    return _part(scan(folders["train"], classes), split, validation_share)


def _look_below(root: Path) -> None:
    """Raise UserError where what looks like a class folder is a data set with splits of its own."""
    with scanned(root) as entries:
        folders = sorted(Path(entry.path) for entry in entries if entry.is_dir())
    for folder in folders:
        if (folder / "train").is_dir() and any((folder / n).is_dir() for n in SPLITS[1:]):
            raise UserError(
                f"{root} holds no class folders but a data set, {folder.name}: give {folder} as "
                f"--data_path"
            )


def _part(listing: L, split: SplitName, share: float) -> L:
    held = hold_out(listing.labels, share)
    return listing.select(held if split == "validation" else ~held)


def split_folders(root: Path) -> dict[SplitName, Path]:
    """The folders of `root` that are named as splits, by split. Raises UserError for two of one."""
    validation = [root / name for name in ("val", "validation") if (root / name).is_dir()]
    if len(validation) > 1:
        raise UserError(f"{root} holds both val and validation: keep one of them")
    folders: dict[SplitName, Path] = {}
    if (root / "train").is_dir():
        folders["train"] = root / "train"
    if (root / "test").is_dir():
        folders["test"] = root / "test"
    if validation:  # public validation sets whose test labels are secret serve as the test split
        folders["validation" if "test" in folders else "test"] = validation[0]
    return folders


def agreed_classes(folders: Iterable[Path]) -> tuple[str, ...]:
    """The class names that all folders share. Raises UserError where they differ."""
    first, *others = folders
    classes = class_names(first)
    for other in others:
        theirs = class_names(other)
        if theirs != classes:
            odd = sorted(set(theirs) ^ set(classes))
            raise UserError(
                f"the class folders of {other} differ from those of {first} (for one, "
                f"'{odd[0]}'): give both the same"
            )
    return classes


def class_names(folder: Path) -> tuple[str, ...]:
    """The names of a folder's class folders, sorted. Raises UserError for fewer than two."""
    with scanned(folder) as entries:
        names = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    if not names:
        raise UserError(
            f"{folder} holds no class folders: put the images, or clips, in {folder}/<class>/"
        )
    if len(names) < 2:
        raise UserError(
            f"{folder} holds one class folder only ('{names[0]}'): classification needs two or more"
        )
    return tuple(names)


def images_of(folder: Path, classes: tuple[str, ...]) -> Listing:
    """The images in class folders of these names. Raises UserError where one holds none."""
    files: list[ImageFile] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = _images(folder / name)
        files += found
        labels += [label] * len(found)
    return Listing(tuple(files), torch.tensor(labels), torch.arange(len(labels)), classes)


def _images(folder: Path) -> list[ImageFile]:
    with scanned(folder) as entries:
        found = [
            ImageFile(entry.path, entry.stat().st_size, entry.stat().st_mtime_ns)
            for entry in entries
            if entry.name.lower().endswith(SUFFIXES)
            and not entry.name.startswith(".")
            and entry.is_file()
        ]
    if not found:
        raise UserError(
            f"the class folder {folder} holds no images ({', '.join(SUFFIXES)}): "
            f"fill it or remove it"
        )
    return sorted(found)


def scanned(folder: Path) -> os._ScandirIterator[str]:
    """What a folder holds. Raises UserError where it cannot be listed."""
    try:
        return os.scandir(folder)
    except OSError as problem:
        raise UserError(f"cannot list {folder} ({problem.strerror}): check its rights") from None
