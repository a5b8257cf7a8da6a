"""The data sets by name."""

from typing import get_args

from ..core import Table, UserError
from .augment import AUGMENTATIONS, Augmentation, prepared
from .base import DataSpec, LoadOptions, Recipe, Split, SplitName
from .cifar import CIFAR_10, CIFAR_100
from .clips import CLIPS
from .coco import COCO
from .digits import DIGITS
from .distortions import Distortions
from .imagefolder import IMAGEFOLDER
from .loader import TrainLoader
from .mixing import Mixing
from .moving_digits import MOVING_DIGITS
from .segmentation import DIGIT_BOXES, SEGMENTATION
from .triplets import CHOLECT45
from .voc import VOC

DATASETS: Table[DataSpec] = Table(
    "data set",
    {
        spec.name: spec
        for spec in (
            *(DIGITS, CIFAR_10, CIFAR_100, IMAGEFOLDER),
            *SEGMENTATION,
            *(DIGIT_BOXES, VOC, COCO),
            *(MOVING_DIGITS, CLIPS, CHOLECT45),
        )
    },
)


# What is trained on where only the task is named; all are embedded.
EMBEDDED = {
    "classification": "digits",
    "segmentation": "digit_scenes",
    "detection": "digit_boxes",
    "video": "moving_digits",
}


def load_split(name: str, split: SplitName, options: LoadOptions) -> Split:
    """A split of a data set. Raises UserError if there is no such thing, or nothing in it."""
    spec = DATASETS[name]
    if split not in get_args(SplitName):
        raise UserError(f"unknown split '{split}': choose from {', '.join(get_args(SplitName))}")
    loaded = spec.load(options, split)
    if not len(loaded):
        raise UserError(
            f"the {split} split of {name} is empty with a validation share of "
            f"{options.validation_share}: hold out another share of train"
        )
    return loaded


__all__ = [
    "AUGMENTATIONS",
    "DATASETS",
    "EMBEDDED",
    "Augmentation",
    "DataSpec",
    "Distortions",
    "LoadOptions",
    "Mixing",
    "Recipe",
    "Split",
    "SplitName",
    "TrainLoader",
    "load_split",
    "prepared",
]
