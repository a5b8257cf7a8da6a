"""Any images in class folders."""

from __future__ import annotations

from .base import DataSpec, LoadOptions, Recipe, Split, SplitName
from .cache import load_listing
from .folders import data_root, images_of, list_split

DEFAULT_SIZE = 224


def load(options: LoadOptions, split: SplitName) -> Split:
    """Images (N,3,S,S), S the image size asked for (224 by default), of a folder of class folders.

    Their shorter side is resized to S and the centre cut out. `folders.list_split` says which
    layouts are known. Raises UserError where the folder doesn't follow one.
    """
    root = data_root("imagefolder", options)
    listing = list_split(root, split, options.validation_share, images_of)
    size = options.image_size or DEFAULT_SIZE
    return load_listing(listing, root, split, size, True, options)


IMAGEFOLDER = DataSpec(
    name="imagefolder",
    task="classification",
    default_model="torchvision:resnet18",
    # The reference recipe of torchvision for the ResNets on ImageNet.
    recipe=Recipe(
        epochs=90,
        batch_size=256,
        lr=0.1,
        weight_decay=1e-4,
        momentum=0.9,
        schedule="multistep",
        milestones=(30, 60),
        augment="imagenet",
    ),
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    load=load,
)
