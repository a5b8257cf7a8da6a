"""Any clips in class folders: folders of frames, video files, UCF101, Kinetics."""

from __future__ import annotations

from .base import DataSpec, LoadOptions, Recipe, Split, SplitName
from .clip_decode import load_clips
from .clip_files import list_clips
from .folders import data_root

DEFAULT_SIZE, DEFAULT_FRAMES = 112, 8


def load(options: LoadOptions, split: SplitName) -> Split:
    """Clips (N,T*3,S,S): T frames evenly spaced over each (8 by default), S pixels a side (112).

    A frame's shorter side is resized to S and the centre cut out. `clip_files.list_clips` says
    which layouts are known. Raises UserError where the folder doesn't follow one, and for a clip
    that is shorter or cannot be read.
    """
    root, frames = data_root("clips", options), options.frames or DEFAULT_FRAMES
    listing = list_clips(root, split, options.validation_share, frames)
    return load_clips(listing, root, split, frames, options.image_size or DEFAULT_SIZE, options)


# Of a frame; as torchvision normalises for its video networks, trained on Kinetics.
MEAN, STD = (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)

# The reference recipe of torchvision for the ResNets on Kinetics, its learning rate that of one
# device with a batch of 24.
RECIPE = Recipe(
    epochs=45,
    batch_size=24,
    lr=0.01,
    weight_decay=1e-4,
    momentum=0.9,
    schedule="multistep",
    milestones=(20, 30, 40),
    augment="flip",
)

CLIPS = DataSpec(
    name="clips",
    task="video",
    default_model="r3d_18",
    recipe=RECIPE,
    mean=MEAN,
    std=STD,
    load=load,
)
