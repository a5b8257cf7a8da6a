"""An animation that slides from the clean images to the deformed ones and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ..deformation import Padding, warp
from ..records import Example, Records
from .choice import chosen
from .saving import save_animation
from .tiles import captioned, enlarged, side_by_side
from .words import LETTERS, attacked_with, verdict

MOST = 4  # examples side by side
FRAMES = 20
MOMENT, PAUSE = 90, 700  # milliseconds: a frame, and those of either end
_Images = NDArray[np.float32]


def draw_animation(
    records: Records,
    folder: Path,
    most: int = MOST,
    *,
    padding: Padding = "border",
    smooth: bool = True,
) -> Path | None:
    """Draw `folder/deformation.gif`, a loop; None where the records hold no flow.

    Up to four examples, at most `most` of an attack and chosen as for `deformations.png`, move side
    by side; above each stand the predictions before and after, below it how far the pixel that
    moves most has come along either axis. `padding` says what lies beyond the edge, as for `warp`.
    Enlarged `smooth`ly, moves of less than a pixel are seen as moves; otherwise each pixel is a
    square, as the model sees it.
    """
    examples = [example for example in records.examples if example.flow is not None]
    examples = chosen(records, examples, most, MOST)
    if not examples:
        return None
    shares = 1 - np.abs(2 * np.arange(FRAMES) / FRAMES - 1)  # 0, up to 1, and down again
    tiles = [_tiles(example, records, shares, padding, smooth=smooth) for example in examples]
    frames = [side_by_side(moment) for moment in zip(*tiles, strict=True)]
    pauses = [PAUSE if share in (0, 1) else MOMENT for share in shares]
    return save_animation(frames, pauses, folder / "deformation.gif")


def between(example: Example, shares: NDArray[np.float64], padding: Padding) -> _Images:
    """Images (T,C,H,W) on the way from the clean one, at share 0, to the deformed one, at share 1.

    The clean image is warped by a share of the flow. What the attack changed besides, so that its
    image is not the warped one, is blended in by the same share.
    """
    assert example.flow is not None
    part = torch.from_numpy(shares.astype(np.float32)).view(-1, 1, 1, 1)
    clean, flow, end = (
        torch.from_numpy(image)[None]
        for image in (example.clean, example.flow, example.adversarial)
    )
    rest = end - warp(clean, flow, padding)
    moved = warp(clean.expand(len(part), -1, -1, -1), part * flow, padding)
    images: _Images = (moved + part * rest).clamp(0, 1).numpy()
    return images


def _tiles(
    example: Example,
    records: Records,
    shares: NDArray[np.float64],
    padding: Padding,
    *,
    smooth: bool,
) -> list[Image.Image]:
    """One example's frames: what it is above the image, how far it has moved below."""
    assert example.flow is not None
    largest = float(np.abs(example.flow).max())
    above = [
        *attacked_with(records, example, LETTERS).split("\n"),
        verdict(records, example, attacked=False, most=14),
        f"→ {verdict(records, example, attacked=True, most=14)}",
    ]
    images = between(example, shares, padding)
    return [
        captioned(enlarged(image, smooth=smooth), above, f"largest move: {share * largest:.2f} px")
        for image, share in zip(images, shares, strict=True)
    ]
