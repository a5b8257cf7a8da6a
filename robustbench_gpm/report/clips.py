"""Clips: frames before and after an attack and what changed in each, still and moving."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from ..records import Example, Records
from .choice import chosen, frames_of
from .panels import (
    LETTER,
    arrow_scale,
    scale_of_difference,
    scale_of_flow,
    show_arrows,
    show_image,
    show_signed,
)
from .saving import save, save_animation
from .tiles import captioned, enlarged, side_by_side, stacked
from .words import LETTERS, RIGHT, attacked_with, class_name, colour

MOST = 4  # examples
MOST_FRAMES = 6  # of a clip, side by side
PANEL, LEAST_WIDTH = 1.2, 5.5  # inches
ARROWS = 8  # across a frame
LEGEND = (
    "flow: arrows go where a pixel is read from\n"
    "difference: red is brighter, blue darker, in the channel that changed most"
)
LASTS, SHORTEST, LONGEST = 2000, 60, 400  # milliseconds: a clip, and the limits of a frame
PAUSE = 600  # before a clip begins anew
_Frames = NDArray[np.float32]


def draw_clips(records: Records, folder: Path, most: int = MOST) -> Path | None:
    """Draw some clips into `folder/clips.png`; None where the records hold none.

    Examples are chosen as for `examples.png`, four in all. An example has three rows of up to six
    frames from the first to the last: the clean clip, the attacked one, and what changed in each
    frame: its flow, or the signed difference. The scale of a change is that of its whole row.
    """
    examples = _whole(records, most)
    if not examples:
        return None
    places = frames_shown(frames_of(records))
    height, width = examples[0].clean.shape[-2:]
    row = PANEL * min(height / width, 1.5) + 0.12
    size = (max(PANEL * len(places), LEAST_WIDTH), len(examples) * (3 * row + 0.35) + 0.9)
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(textwrap.shorten(records.model, 70, placeholder="…"), fontsize=11)
    figure.supxlabel(LEGEND, fontsize=8)
    parts = figure.subfigures(len(examples), 1, squeeze=False)[:, 0]
    for part, example in zip(parts, examples, strict=True):
        _draw_example(part.subplots(3, len(places), squeeze=False), example, places, records)
    return save(figure, folder / "clips.png")


def draw_clip_animation(records: Records, folder: Path, most: int = MOST) -> Path | None:
    """Draw `folder/clips.gif`, a loop; None where the records hold no clips.

    The examples of `clips.png` play, two in a row: each clean, and attacked beside it, with what
    the model takes it for above.
    """
    examples, count = _whole(records, most), frames_of(records)
    if not examples:
        return None
    played = [_played(example, records, count) for example in examples]
    moments = [
        stacked([side_by_side(now[n : n + 2]) for n in range(0, len(now), 2)])
        for now in zip(*played, strict=True)
    ]
    moment = int(np.clip(LASTS // count, SHORTEST, LONGEST))
    pauses = [moment] * (count - 1) + [moment + PAUSE]
    return save_animation(moments, pauses, folder / "clips.gif")


def frames_shown(count: int) -> list[int]:
    """Up to six frames of `count`, evenly apart, the first and the last among them."""
    places = np.linspace(0, count - 1, min(count, MOST_FRAMES))
    return [int(place) for place in np.round(places)]


def _whole(records: Records, most: int) -> list[Example]:
    """The clips to draw; none where the records are of images."""
    if frames_of(records) == 1:
        return []
    return chosen(records, records.examples, most, MOST, whole=True)


def _draw_example(
    rows: NDArray[np.object_], example: Example, places: Sequence[int], records: Records
) -> None:
    count = frames_of(records)
    clean, adversarial = (_parted(x, count) for x in (example.clean, example.adversarial))
    for panel, place in zip(rows[0], places, strict=True):
        show_image(panel, clean[place])
    for panel, place in zip(rows[1], places, strict=True):
        show_image(panel, adversarial[place])
    scale = _draw_changes(rows[2], example, clean, adversarial, places)
    for panel, attacked in zip(rows[:2, 0], (False, True), strict=True):
        head, told = _told(example, records, attacked=attacked)
        _head(panel, f"{head.replace(chr(10), '')}; {told}", colour(example, attacked=attacked))
    _head(rows[2, 0], scale, RIGHT)
    for panel, place in zip(rows[2], places, strict=True):
        panel.set_xlabel(f"frame {place + 1}", fontsize=LETTER - 1, labelpad=2)


def _draw_changes(
    panels: NDArray[np.object_],
    example: Example,
    clean: _Frames,
    adversarial: _Frames,
    places: Sequence[int],
) -> str:
    """The flow of each frame, or the difference; the scale of them all."""
    if example.flow is None:
        largest = float(np.abs(adversarial - clean).max())
        for panel, place in zip(panels, places, strict=True):
            show_signed(panel, adversarial[place] - clean[place], largest)
        return ", ".join(scale_of_difference(largest))
    own = len(example.flow) > 2
    flows = _parted(example.flow, len(clean) if own else 1)
    times = arrow_scale(flows, ARROWS)
    for panel, place in zip(panels, places, strict=True):
        show_arrows(panel, clean[place], flows[place if own else 0], times, ARROWS)
    scale = ", ".join(scale_of_flow(float(np.abs(flows).max()), times))
    return scale if own else f"{scale}, the same in every frame"


def _head(panel: Axes, text: str, ink: str) -> None:
    """A line above a row of frames, from the first on and as long as it is."""
    panel.set_title(" ", fontsize=LETTER, pad=3)  # room for its height, and not for its length
    head = panel.annotate(
        text, (0, 1), (0, 3), xycoords="axes fraction", textcoords="offset points", fontsize=LETTER
    )
    head.set(color=ink, in_layout=False, annotation_clip=False)


def _told(example: Example, records: Records, *, attacked: bool) -> tuple[str, str]:
    """What a clip is, and what the model takes it for."""
    prediction = example.prediction if attacked else example.clean_prediction
    confidence = example.confidence if attacked else example.clean_confidence
    told = f"predicted {class_name(records, prediction)}, {100 * confidence:.0f}%"
    if attacked:
        return attacked_with(records, example, LETTERS), told
    return f"clean: {class_name(records, example.label)}", told


def _parted(channels: _Frames, frames: int) -> _Frames:
    """(T*C,H,W) as (T,C,H,W)."""
    return channels.reshape(frames, -1, *channels.shape[-2:])


def _played(example: Example, records: Records, count: int) -> list[Image.Image]:
    """At each time the clean frame beside the attacked one, with words above and below."""
    heads = [
        [*head.split("\n"), told]
        for head, told in (_told(example, records, attacked=each) for each in (False, True))
    ]
    clean, adversarial = (_parted(x, count) for x in (example.clean, example.adversarial))
    moments = []
    for time in range(count):
        below = f"frame {time + 1} of {count}"
        pair = zip((clean[time], adversarial[time]), heads, strict=True)
        moments.append(
            side_by_side([captioned(enlarged(x, smooth=False), head, below) for x, head in pair])
        )
    return moments
