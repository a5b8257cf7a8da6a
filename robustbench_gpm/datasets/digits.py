"""The 8x8 handwritten digits that scikit-learn carries: a data set that needs no download."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits

from .base import DataSpec, LoadOptions, Recipe, Split, SplitName
from .shuffle import hold_out

TEST, VALIDATION = 400, 200
BRIGHTEST = 16


def load(options: LoadOptions, split: SplitName) -> Split:
    """1797 grey images (N,1,8,8), parted once for all: about 1197 / 200 / 400, class by class.

    The data path and the validation share play no part. Source: UCI Optical Recognition of
    Handwritten Digits (Alpaydin and Kaynak, 1998), as scikit-learn's `load_digits`.
    """
    options.fixed_size("digits", 8)
    source = load_digits()
    grey = np.rint(source.images * (255 / BRIGHTEST)).astype(np.uint8)
    images, labels = torch.from_numpy(grey)[:, None], torch.from_numpy(source.target).long()
    parts = np.full(len(labels), "train", dtype=object)
    rows = torch.arange(len(labels))
    for name, size in (("test", TEST), ("validation", VALIDATION)):
        held = rows[hold_out(labels[rows], size / len(rows))]
        parts[held.numpy()] = name
        rows = torch.from_numpy(np.flatnonzero(parts == "train"))
    index = torch.from_numpy(np.flatnonzero(parts == split))
    return Split(images[index], labels[index], index, tuple(str(n) for n in source.target_names))


DIGITS = DataSpec(
    name="digits",
    task="classification",
    default_model="digits_cnn",
    recipe=Recipe(
        epochs=40,
        batch_size=64,
        lr=0.05,
        weight_decay=5e-4,
        momentum=0.9,
        schedule="cosine",
        milestones=(),
        augment="shift",
    ),
    mean=(0.3053,),
    std=(0.3760,),
    load=load,
)
