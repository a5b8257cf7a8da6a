"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009), from class folders or as torchvision keeps them."""

from __future__ import annotations

import contextlib
import http.client
import socket
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torchvision.datasets import CIFAR10, CIFAR100

from ..core import UserError
from .base import DataSpec, LoadOptions, Recipe, Split, SplitName
from .cache import load_listing
from .folders import has_splits, images_of, list_split
from .shuffle import hold_out

SIDE = 32
SOURCES = {"cifar10": CIFAR10, "cifar100": CIFAR100}
CLASSES = {"cifar10": 10, "cifar100": 100}
PATIENCE = 30.0  # seconds without an answer before a download is given up


def load(name: str, options: LoadOptions, split: SplitName) -> Split:
    """Images (N,3,32,32) of `cifar10` or `cifar100`; the labels count the sorted class names.

    Taken from DATA_PATH/<name>/{train,test}/<class>/* or DATA_PATH/{train,test}/<class>/* if there,
    else from torchvision's layout under DATA_PATH (./data by default), downloaded if missing.
    Raises UserError if none of these can be had.
    """
    options.fixed_size(name, SIDE)
    base = (options.data_path or Path("data")).expanduser().resolve()
    if base.exists() and not base.is_dir():
        raise UserError(f"--data_path {base} is not a folder: give the folder that holds {name}")
    for root in (base / name, base):
        if has_splits(root):
            return _from_folders(name, root.resolve(), options, split)
    return _from_torchvision(name, base, options, split)


def _from_folders(name: str, root: Path, options: LoadOptions, split: SplitName) -> Split:
    listing = list_split(root, split, options.validation_share, images_of)
    if len(listing.classes) != CLASSES[name]:
        raise UserError(
            f"{root} has {len(listing.classes)} class folders where {name} has {CLASSES[name]}: "
            f"correct --data_path, or use --data_name imagefolder for another data set"
        )
    return load_listing(listing, root, split, SIDE, False, options)


def _from_torchvision(name: str, base: Path, options: LoadOptions, split: SplitName) -> Split:
    source = _source(name, base, options.download, train=split != "test")
    images = torch.from_numpy(source.data).permute(0, 3, 1, 2)
    labels, index = torch.tensor(source.targets), torch.arange(len(source.targets))
    if split != "test":
        held = hold_out(labels, options.validation_share)
        index = index[held if split == "validation" else ~held]
    return Split(images[index].contiguous(), labels[index], index, tuple(source.classes))


def _source(name: str, base: Path, download: bool, train: bool) -> Any:
    # torchvision unpickles these files. That is safe only because it compares the MD5 of each one
    # with its own list first, and raises RuntimeError at any difference.
    kind = SOURCES[name]
    try:
        return kind(str(base), train=train, download=False)
    except RuntimeError:
        if not download:
            raise _not_found(name, base, "downloading is off") from None
    try:
        with patient_download():
            return kind(str(base), train=train, download=True)
    except (OSError, RuntimeError, http.client.HTTPException) as problem:
        raise _not_found(name, base, f"the download failed: {problem}") from None


@contextlib.contextmanager
def patient_download() -> Iterator[None]:
    """No endless wait for a dead network, and nothing but results on stdout."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        socket.setdefaulttimeout(before)


def _not_found(name: str, base: Path, why: str) -> UserError:
    layouts = (
        base / name / "{train,test}/<class>/*",
        base / "{train,test}/<class>/*",
        base / SOURCES[name].base_folder,
    )
    places = ", ".join(str(place) for place in layouts)
    return UserError(
        f"{name} is not, or not intact, in any of {places} ({why}): put it in one of these places, "
        f"the last as torchvision unpacks it, or point --data_path elsewhere"
    )


RECIPE = Recipe(  # of the flow-gradient paper (Xia and Li, arXiv 2008.12997, their code)
    epochs=80,
    batch_size=128,
    lr=0.01,
    weight_decay=5e-4,
    momentum=0.9,
    schedule="multistep",
    milestones=(40, 60),
    augment="crop_flip",
)

CIFAR_10 = DataSpec(
    name="cifar10",
    task="classification",
    default_model="vgg11",
    recipe=RECIPE,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    load=partial(load, "cifar10"),
)

CIFAR_100 = DataSpec(
    name="cifar100",
    task="classification",
    default_model="vgg11",
    recipe=RECIPE,
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
    load=partial(load, "cifar100"),
)
