"""Figures to files: atomically, and the same bytes for the same figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from ..files import atomically, writable_folder

# No date and no version, so that the bytes tell of the records alone.
_METADATA: dict[str, dict[str, None]] = {
    "png": {"Software": None},
    "pdf": {"Creator": None, "Producer": None, "CreationDate": None},
}


def save(figure: Figure, path: Path) -> Path:
    """Write the figure to `path` (.png at 200 dots an inch, or .pdf) and return the path."""
    kind = path.suffix[1:]
    writable_folder(path.parent, "--out")
    with atomically(path) as temporary:
        figure.savefig(temporary, format=kind, dpi=200, metadata=_METADATA[kind])
    return path


def save_animation(frames: Sequence[Image.Image], pauses: Sequence[int], path: Path) -> Path:
    """Write frames of one size and mode (L or RGB) to `path`, an endless GIF; return the path.

    Each frame stays for its pause in milliseconds. All share 256 colours, so that what does not
    move does not flicker: the greys, exactly, or the best for the first, middle and last frame.
    """
    if frames[0].mode == "RGB":
        width, height = frames[0].size
        seen = Image.new("RGB", (width, 3 * height))
        for number, frame in enumerate((frames[0], frames[len(frames) // 2], frames[-1])):
            seen.paste(frame, (0, number * height))
        palette = seen.quantize(256, Image.Quantize.MEDIANCUT)
        frames = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    writable_folder(path.parent, "--out")
    with atomically(path) as temporary:
        frames[0].save(
            temporary,
            format="GIF",
            save_all=True,
            append_images=frames[1:],
            duration=list(pauses),
            loop=0,
        )
    return path
