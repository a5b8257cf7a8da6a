"""The segmentation data sets: what to train on them by default, and how to load them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from . import digit_scenes
from .base import DataSpec, LoadOptions, Recipe, Split, SplitName
from .cadis import cadis
from .masks import MaskSource, load_masks
from .segmentation_folders import ade20k, camvid, cityscapes, voc


@dataclass(frozen=True)
class FromFolders:
    """Loads a split of what `find` finds."""

    find: Callable[[LoadOptions], MaskSource]

    def __call__(self, options: LoadOptions, split: SplitName) -> Split:
        """See `load_masks`."""
        return load_masks(self.find(options), split, options)


def _of_photographs(
    name: str, find: Callable[[LoadOptions], MaskSource], epochs: int, batch_size: int
) -> DataSpec:
    return DataSpec(
        name=name,
        task="segmentation",
        default_model="lraspp_mobilenet_v3_large",
        # As torchvision's reference for segmentation, with a cosine for its polynomial.
        recipe=Recipe(
            epochs=epochs,
            batch_size=batch_size,
            lr=0.02,
            weight_decay=1e-4,
            momentum=0.9,
            schedule="cosine",
            milestones=(),
            augment="none",
        ),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        load=FromFolders(find),
    )


DIGIT_SCENES = DataSpec(
    name="digit_scenes",
    task="segmentation",
    default_model="digits_segmenter",
    recipe=Recipe(
        epochs=15,
        batch_size=32,
        lr=0.1,
        weight_decay=5e-4,
        momentum=0.9,
        schedule="cosine",
        milestones=(),
        augment="none",
    ),
    mean=(0.159,),
    std=(0.250,),
    load=digit_scenes.load,
)

DIGIT_BOXES = replace(
    DIGIT_SCENES,
    name="digit_boxes",
    task="detection",
    default_model="digits_detector",
    recipe=replace(DIGIT_SCENES.recipe, epochs=20, lr=0.02),
    load=digit_scenes.load_boxed,
)

SEGMENTATION: tuple[DataSpec, ...] = (
    DIGIT_SCENES,
    _of_photographs("camvid", camvid, epochs=100, batch_size=8),
    _of_photographs("voc", voc, epochs=30, batch_size=16),
    _of_photographs("cityscapes", cityscapes, epochs=30, batch_size=8),
    _of_photographs("ade20k", ade20k, epochs=30, batch_size=16),
    _of_photographs("cadis", cadis, epochs=30, batch_size=8),
)
