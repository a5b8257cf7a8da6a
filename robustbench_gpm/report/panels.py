"""What pictures of examples are made of: images, titles, differences and flows, each in a panel."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from .words import RIGHT, WRONG

ARROWS_ACROSS = 12
LETTER = 8.5  # points
SQUARES = 160  # pixels on a side up to which each is a square; larger images are resampled
_Image = NDArray[np.float32]


def set_title(panel: Axes, text: str, colour: str = RIGHT) -> None:
    """A title above an image, in smaller print where it would reach over the next image."""
    title = panel.set_title(text, fontsize=LETTER, color=colour)
    columns = panel.get_subplotspec().get_gridspec().ncols  # type: ignore[union-attr]
    room = 0.95 / columns * panel.figure.bbox.width
    title.set_fontsize(LETTER * min(1.0, room / title.get_window_extent().width))


def show_image(panel: Axes, image: _Image) -> None:
    """An image (C,H,W) in [0,1] of one channel (grey) or three (RGB)."""
    pixels = np.clip(image, 0, 1).transpose(1, 2, 0)
    panel.imshow(
        pixels if len(image) == 3 else pixels[..., 0],
        cmap="gray",
        vmin=0,
        vmax=1,
        interpolation=_interpolation(image),
    )
    frame(panel)


def show_difference(panel: Axes, difference: _Image) -> None:
    """A signed difference (C,H,W): red is brighter, blue darker, full colour at the largest."""
    largest = float(np.abs(difference).max())
    show_signed(panel, difference, largest)
    set_title(panel, "\n".join(scale_of_difference(largest)))


def show_signed(panel: Axes, difference: _Image, largest: float) -> None:
    """A signed difference (C,H,W), of the channel that changed most, in full colour at largest."""
    most = np.abs(difference).argmax(0)[None]
    signed = np.take_along_axis(difference, most, 0)[0]
    limit = largest or 1.0
    how = _interpolation(difference)
    panel.imshow(signed, cmap="coolwarm", vmin=-limit, vmax=limit, interpolation=how)
    frame(panel)


def scale_of_difference(largest: float) -> tuple[str, str]:
    """What a difference is drawn in, in two lines."""
    scale = f"full colour: ±{255 * largest:.3g}/255" if largest else "nothing changed"
    return f"difference, {1 / (largest or 1.0):.3g}x enlarged", scale


def show_flow(panel: Axes, image: _Image, flow: _Image) -> None:
    """A flow (2,H,W) in pixels as arrows over the image in faded grey."""
    times = arrow_scale(flow)
    show_arrows(panel, image, flow, times)
    set_title(panel, "\n".join(scale_of_flow(float(np.abs(flow).max()), times)))


def show_arrows(
    panel: Axes, image: _Image, flow: _Image, times: float, across: int = ARROWS_ACROSS
) -> None:
    """A flow (2,H,W) in pixels as arrows `times` as long, over the image in faded grey."""
    show_image(panel, 0.45 + 0.5 * image.mean(0, keepdims=True))
    _, rows, columns = _grid(flow, across)
    right, down = flow[:, rows[:, None], columns]
    # In data coordinates, where down is positive as in the flow itself.
    panel.quiver(
        *np.meshgrid(columns, rows),
        right,
        down,
        angles="xy",
        scale_units="xy",
        scale=1 / times,
        color=WRONG,
        width=0.008,
        headwidth=3.5,
        headlength=4,
    )


def arrow_scale(flows: _Image, across: int = ARROWS_ACROSS) -> float:
    """How many times as long the arrows of flows (...,2,H,W) can be without running together."""
    step, rows, columns = _grid(flows, across)
    right, down = np.moveaxis(flows[..., rows[:, None], columns], -3, 0)
    longest = float(np.hypot(right, down).max())
    return _round_down(1.5 * step / longest) if longest else 1.0


def scale_of_flow(largest: float, times: float) -> tuple[str, str]:
    """What a flow is drawn in, in two lines."""
    scale = f"largest move: {largest:.3g} px" if largest else "nothing moved"
    return f"flow, arrows {times:g}x enlarged", scale


def _grid(flow: _Image, across: int) -> tuple[int, NDArray[np.int64], NDArray[np.int64]]:
    """The pixels between two arrows, and the rows and columns where they begin."""
    height, width = flow.shape[-2:]
    step = -(-max(height, width) // across)
    return step, np.arange(step // 2, height, step), np.arange(step // 2, width, step)


def show_displacement(panel: Axes, flow: _Image) -> None:
    """How far a flow (2,H,W) moves each pixel, in pixels, as a heat map with a colour bar.

    The map is cividis, which looks much the same with and without colour blindness (Nuñez,
    Anderton and Renslow 2018).
    """
    length = np.hypot(flow[0], flow[1])
    longest = float(length.max())
    limit = longest or 1.0
    drawn = panel.imshow(length, cmap="cividis", vmin=0, vmax=limit)
    frame(panel)
    bar = panel.figure.colorbar(
        drawn,
        cax=panel.inset_axes((1.03, 0, 0.06, 1)),
        ticks=[0, limit / 2, limit],
        format="{x:.2g}",
    )
    bar.set_label("px", fontsize=LETTER - 1, labelpad=2)
    bar.ax.tick_params(labelsize=LETTER - 1.5, length=2, pad=1.5)
    bar.outline.set(linewidth=0.5)
    scale = f"longest: {longest:.3g} px" if longest else "nothing moved"
    set_title(panel, f"length of the flow\n{scale}")


def frame(panel: Axes) -> None:
    """A thin grey line around a panel without ticks."""
    panel.set_xticks([])
    panel.set_yticks([])
    for spine in panel.spines.values():
        spine.set(color="0.7", linewidth=0.6)


def _interpolation(image: _Image) -> str:
    return "nearest" if max(image.shape[-2:]) <= SQUARES else "antialiased"


def _round_down(value: float) -> float:
    """The value cut to one digit."""
    power = 10.0 ** math.floor(math.log10(value))
    return math.floor(value / power) * power
