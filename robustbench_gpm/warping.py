"""Reading an image between its pixels, with derivatives by formula: how `deformation.warp` works.

Four pixels are read for each place, and two more along an axis on which a place is a pixel's very
centre: there the slope is the central difference, which autograd would need all nine to know. A
first derivative is then a product with two slopes that the forward pass keeps. `nine_taps` is the
same warp in operations that autograd differentiates any number of times.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

Padding = Literal["border", "zeros", "reflection"]


class Warp(torch.autograd.Function):
    """`deformation.warp` of x (B,C,H,W) by a flow (B,2,H,W) of the same type.

    A derivative that is itself to be differentiated (create_graph) is autograd's, by `nine_taps`.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, flow: Tensor, padding: Padding) -> Tensor:
        cells = _Cells(flow, padding)
        image = cells.stored(x)
        corners = [cells.read(image, row, column) for row, column, _ in cells.taps]
        slopes = cells.slopes(image, corners) if ctx.needs_input_grad[1] else ()
        ctx.save_for_backward(x, flow, *slopes)
        ctx.padding = padding
        out = torch.zeros_like(corners[0])
        for corner, (_, _, weight) in zip(corners, cells.taps, strict=True):
            out += weight * corner
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, flow, *slopes = ctx.saved_tensors
        to_x, to_flow = ctx.needs_input_grad[:2]
        if torch.is_grad_enabled():
            return *_by_autograd(x, flow, ctx.padding, gradient, to_x, to_flow), None
        return (
            _Cells(flow, ctx.padding).spread(gradient) if to_x else None,
            onto_flow(gradient, *slopes) if to_flow else None,
            None,
        )


def onto_flow(gradient: Tensor, right: Tensor, down: Tensor) -> Tensor:
    """dL/dflow (B,2,H,W) out of dL/dwarp and the slopes of the warped image, all (B,C,H,W)."""
    return torch.stack(((gradient * right).sum(1), (gradient * down).sum(1)), dim=1)


class _Axis:
    """Along one axis: which two pixels each place lies between, and where between them."""

    def __init__(self, shift: Tensor, base: Tensor, size: int, padding: Padding) -> None:
        """Of the places `base + shift` (B,H,W), in pixels, on an axis of `size` pixels."""
        shift = _within_reach(shift, size, padding)
        whole = shift.floor()
        self.rest = (shift - whole).unsqueeze(1)  # (B,1,H,W), 0 at the first pixel's centre
        self.first, self.size, self.padding = base + whole.to(torch.int64), size, padding
        self.pair = self.stored(self.first), self.stored(self.first + 1)
        of_first = 1 - self.rest
        self.weights = of_first, 1 - of_first  # of the pair; their sum is 1 whatever was rounded

    @property
    def ring(self) -> int:
        """How many black pixels are stored before the image's own, and after them."""
        return int(self.padding == "zeros")

    @property
    def length(self) -> int:
        return self.size + 2 * self.ring

    def stored(self, pixel: Tensor) -> Tensor:
        """Where pixels of the image, which goes on beyond its edges, are stored."""
        return _inside(pixel + self.ring if self.ring else pixel, self.length, self.padding)

    def slope(self, before: Tensor, after: Tensor, line: Callable[[Tensor], Tensor]) -> Tensor:
        """From what lies before and after each place; `line` reads other stored pixels.

        At a pixel's centre, what lies before is one pixel further back, and two from what is after.
        """
        if bool(self.rest.all()):  # no place is a pixel's centre
            return after - before
        centred = self.rest == 0
        before = line(self.stored(self.first - centred.squeeze(1).to(torch.int64)))
        return (after - before) * (1 - centred.to(after.dtype) / 2)


class _Cells:
    """The four pixels around each place of a flow (B,2,H,W), and what is read from them."""

    def __init__(self, flow: Tensor, padding: Padding) -> None:
        (height, width), (rows, columns) = flow.shape[2:], _pixel_grid(flow)
        self.across = _Axis(flow[:, 0], columns, width, padding)
        self.down = _Axis(flow[:, 1], rows, height, padding)
        self.taps = [  # (row, column, weight): upper left, upper right, lower left, lower right
            (row, column, row_weight * column_weight)
            for row, row_weight in zip(self.down.pair, self.down.weights, strict=True)
            for column, column_weight in zip(self.across.pair, self.across.weights, strict=True)
        ]

    def stored(self, x: Tensor) -> Tensor:
        ring = self.across.ring
        return (pad(x, (ring, ring, ring, ring)) if ring else x).contiguous()

    def place(self, row: Tensor, column: Tensor, channels: int) -> Tensor:
        """Positions (B,C,H*W) of stored rows and columns (B,H,W) in the flattened stored image."""
        position = torch.add(column, row, alpha=self.across.length)
        return position.flatten(1).unsqueeze(1).expand(-1, channels, -1)

    def read(self, image: Tensor, row: Tensor, column: Tensor) -> Tensor:
        """The pixels (B,C,H,W) at stored rows and columns of a stored image."""
        place = self.place(row, column, image.shape[1])
        return image.flatten(2).gather(2, place).view(*image.shape[:2], *row.shape[1:])

    def slopes(self, image: Tensor, corners: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Derivatives of the warped image (B,C,H,W) by the flow to the right, and downwards."""
        (left, right), (top, bottom) = self.across.pair, self.down.pair
        read, rest_right, rest_down = self.read, self.across.rest, self.down.rest

        def row(r: Tensor) -> Tensor:
            return torch.lerp(read(image, r, left), read(image, r, right), rest_right)

        def column(c: Tensor) -> Tensor:
            return torch.lerp(read(image, top, c), read(image, bottom, c), rest_down)

        upper_left, upper_right, lower_left, lower_right = corners
        before = torch.lerp(upper_left, lower_left, rest_down)
        after = torch.lerp(upper_right, lower_right, rest_down)
        above = torch.lerp(upper_left, upper_right, rest_right)
        below = torch.lerp(lower_left, lower_right, rest_right)
        return self.across.slope(before, after, column), self.down.slope(above, below, row)

    def spread(self, gradient: Tensor) -> Tensor:
        """dL/dx out of dL/dwarp, both (B,C,H,W): each place's share goes to its four pixels."""
        (b, channels, height, width), ring = gradient.shape, self.across.ring
        stored = gradient.new_zeros(b, channels, self.down.length, self.across.length)
        flat = stored.view(b, channels, self.down.length * self.across.length)
        for row, column, weight in self.taps:
            share = (weight * gradient).flatten(2)
            flat.scatter_add_(2, self.place(row, column, channels), share)
        return stored[:, :, ring : ring + height, ring : ring + width]


def _by_autograd(
    x: Tensor, flow: Tensor, padding: Padding, gradient: Tensor, to_x: bool, to_flow: bool
) -> tuple[Tensor | None, Tensor | None]:
    """What `gradient` (B,C,H,W) becomes on x and on `flow`, itself differentiable."""
    x, flow = x.view_as(x), flow.view_as(flow)  # so that a flow made from x is not followed to x
    wanted = [tensor for tensor, needed in ((x, to_x), (flow, to_flow)) if needed]
    warped = nine_taps(x, flow, padding)
    found = iter(torch.autograd.grad(warped, wanted, gradient, create_graph=True))
    return next(found) if to_x else None, next(found) if to_flow else None


def nine_taps(x: Tensor, flow: Tensor, padding: Padding) -> Tensor:
    """What `Warp` must agree with: three pixels an axis, both neighbours of a centre among them."""
    (height, width), (rows, columns) = x.shape[2:], _pixel_grid(flow)
    row_taps = _taps(flow[:, 1], rows, height, padding)
    column_taps = _taps(flow[:, 0], columns, width, padding)
    out = torch.zeros_like(x)
    for row, row_weight in row_taps:
        for column, column_weight in column_taps:
            place = (row * width + column).flatten(1).unsqueeze(1).expand(-1, x.shape[1], -1)
            weight = (row_weight * column_weight).unsqueeze(1)
            out = out + weight * x.flatten(2).gather(2, place).view_as(x)
    return out


def _taps(shift: Tensor, base: Tensor, size: int, padding: Padding) -> list[tuple[Tensor, Tensor]]:
    """Along one axis: the three pixels around `base + shift` (B,H,W), each with its weight."""
    shift = _within_reach(shift, size, padding)
    whole = shift.detach().round()
    rest = shift - whole  # in [-.5, .5]; exact, because `whole` is an integer near `shift`
    # torch.maximum halves the gradient at a tie, so that at a pixel's centre (rest == 0), and at no
    # place beside it, the outer taps get -1/2 and +1/2 and the middle one 0: the central difference
    nothing = torch.zeros_like(rest)
    before, after = torch.maximum(-rest, nothing), torch.maximum(rest, nothing)
    weights = [1 - (1 - before), 1 - rest.abs(), 1 - (1 - after)]  # rounded as `_Axis.weights` are
    pixels = [base + whole.to(torch.int64) + offset for offset in (-1, 0, 1)]
    if padding == "zeros":
        weights = [w * ((p >= 0) & (p < size)) for w, p in zip(weights, pixels, strict=True)]
    return [(_inside(p, size, padding), w) for w, p in zip(weights, pixels, strict=True)]


def _within_reach(shift: Tensor, size: int, padding: Padding) -> Tensor:
    """The same shifts, no further than where their whole part makes an index.

    With `border` no further than the edge, where all is flat, can be from the furthest pixel.
    """
    if padding == "border":
        return shift.clamp(-size, size)
    furthest = min(2.0**52, torch.finfo(shift.dtype).max)
    return shift.clamp(-furthest, furthest)


def _pixel_grid(flow: Tensor) -> tuple[Tensor, Tensor]:
    """Row numbers (H,1) and column numbers (W,) of the pixels of a flow (B,2,H,W)."""
    height, width = flow.shape[2:]
    rows = torch.arange(height, device=flow.device).unsqueeze(1)
    return rows, torch.arange(width, device=flow.device)


def _inside(pixel: Tensor, size: int, padding: Padding) -> Tensor:
    """Which pixel of 0..size-1 stands at each place of an axis without end."""
    if padding == "reflection":
        there_and_back = max(2 * (size - 1), 1)
        pixel = size - 1 - (pixel.remainder(there_and_back) - (size - 1)).abs()
    return pixel.clamp(0, size - 1)
