"""Square attack (Andriushchenko et al. 2020, arXiv 1912.00049): random search without gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ..core import Loss, Samples
from .any_loss import AnyLoss
from .ascent import as_given, in_turn
from .geometry import per_sample
from .threats import THREATS, Threat

# The square's share of the image is halved after these queries of 10,000 (section 4 of the paper).
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
AHEAD = 100  # queries drawn for at once: a sample's stream is asked seldom

Window = tuple[Tensor, Tensor, Tensor, Tensor]  # indices that pick (B,C,side,side) of (B,C,H,W)


@dataclass(frozen=True)
class Square(AnyLoss):
    """Random search with square-shaped changes: what raises the loss stays, the rest is undone.

    The image's columns begin at a random end of the budget each (linf), or its tiles with a random
    pattern (l2, l1). A query then sets a random square to an end of the budget (linf), or moves
    there what the perturbation holds in another (l2, l1). `p_init` is the first square's share of
    the image. A restart makes one forward pass for each of the `queries`, the beginning being the
    first of them; one more pass, before each restart, leaves out those already fooled.
    """

    usual_loss: ClassVar[str] = "margin"

    norm: Literal["linf", "l2", "l1"] = "linf"
    queries: int = 5000
    p_init: float = 0.8
    restarts: int = 1

    @property
    def compares(self) -> bool:
        return True

    @property
    def threat(self) -> Threat:
        return THREATS[self.norm]

    def perturb(
        self, model: nn.Module, x: Tensor, y: Tensor, budget: float, loss: Loss, samples: Samples
    ) -> Tensor:
        def stay(_: Tensor, __: Tensor, p: Tensor, ___: Samples) -> Tensor:
            return p

        def search(x: Tensor, y: Tensor, _: Tensor, samples: Samples) -> Tensor:
            with torch.no_grad():
                return self._search(model, x, y, budget, loss, samples)

        searches = [stay, *[search] * self.restarts]
        return in_turn(searches, model, x, y, x, loss, samples, render=as_given)

    def side(self, query: int, height: int, width: int) -> int:
        """The side, in pixels, of the square of that query, counted from 0."""
        now = query * 10_000 // self.queries
        share = self.p_init / 2 ** sum(now > halving for halving in HALVINGS)
        side = round(math.sqrt(share * height * width))
        if self.norm != "linf":
            side = max(side, 3) // 2 * 2 + 1  # odd, for a pattern with a centre
        return min(max(side, 1), height, width)

    def _search(
        self, model: nn.Module, x: Tensor, y: Tensor, budget: float, loss: Loss, samples: Samples
    ) -> Tensor:
        best = self._start(x, budget, samples)
        reached, fooled = loss.judged(model, best, y)
        samples.book(forwards=1)
        reached = reached.nan_to_num(nan=-torch.inf)  # anything is better than a NaN
        ahead = self._draws(x, samples)
        found, rows = best.clone(), torch.arange(len(x), device=x.device)
        for query in range(1, self.queries):
            if bool(fooled.any()):
                found[rows[fooled]] = best[fooled]
                keep = ~fooled
                x, y, best, reached = x[keep], y[keep], best[keep], reached[keep]
                rows, ahead, samples = rows[keep], ahead[keep], samples.select(keep)
                if len(rows) == 0:
                    return found
            if query % AHEAD == 0:
                ahead = self._draws(x, samples)
            tried = self._change(x, best, query, ahead[:, query % AHEAD], budget)
            losses, fooled = loss.judged(model, tried, y)
            samples.book(forwards=1)
            better = (losses > reached) | fooled
            best[better], reached[better] = tried[better], losses[better]
        found[rows] = best
        return found

    def _draws(self, x: Tensor, samples: Samples) -> Tensor:
        """What the next queries draw, (B,AHEAD,5+C): two places, an orientation, the signs."""
        return samples.uniform(x.new_empty(len(x), AHEAD, 5 + x.shape[1]))

    def _start(self, x: Tensor, budget: float, samples: Samples) -> Tensor:
        """Stripes, or tiles of the pattern, all the way out to the budget."""
        if self.norm == "linf":
            return (x + budget * _signs(samples.uniform(x[:, :, :1]))).clamp(0, 1)
        height, width = x.shape[-2:]
        side = max(min(height, width) // 5, 1)
        down, across = height // side, width // side
        corner = x[:, :, :1, :1].expand(-1, -1, down, across)
        signs, turned = _signs(samples.uniform(corner)), samples.uniform(corner[:, 0]) >= 0
        tiles = signs[..., None, None] * _pattern(side, self.norm).to(x)[turned.long()][:, None]
        tiled = tiles.transpose(3, 4).flatten(4).flatten(2, 3)
        top, left = (height - down * side) // 2, (width - across * side) // 2
        delta = torch.zeros_like(x)
        delta[:, :, top : top + down * side, left : left + across * side] = tiled
        delta *= per_sample(budget / self.threat.size(delta), x)
        return (x + delta).clamp(0, 1)

    def _change(self, x: Tensor, best: Tensor, query: int, draw: Tensor, budget: float) -> Tensor:
        """The images that a query tries; `draw` (B,5+C) holds its random numbers in [-1,1)."""
        side = self.side(query - 1, *x.shape[-2:])
        window = _window(x, draw[:, :2], side)
        signs = _signs(draw[:, 5:, None, None])
        if self.norm != "linf":
            other = _window(x, draw[:, 2:4], side)
            pattern = signs * _pattern(side, self.norm).to(x)[(draw[:, 4] >= 0).long()][:, None]
            return self._move(x, best, window, other, pattern, budget)
        tried, clean = best.clone(), x[window]
        new, opposite = ((clean + way * budget * signs).clamp(0, 1) for way in (1, -1))
        # A square that is so already would waste the query.
        same = (new == best[window]).flatten(1).all(1)
        tried[window] = torch.where(per_sample(same, x), opposite, new)
        return tried

    def _move(
        self, x: Tensor, best: Tensor, window: Window, other: Window, pattern: Tensor, budget: float
    ) -> Tensor:
        """Algorithm 3: the window gets the pattern, and what both windows hold of the budget."""
        order = 2 if self.norm == "l2" else 1

        def held(delta: Tensor) -> Tensor:  # the part of budget**order in each channel, (B,C,1,1)
            power = delta.square() if order == 2 else delta.abs()
            return power.sum((2, 3), keepdim=True)

        delta = best - x
        free = (budget**order - held(delta).sum(1, keepdim=True)) / x.shape[1]
        old = delta[window]
        before = held(old)
        delta[window] = 0.0
        share = (free + before + held(delta[other])).clamp_min(0)
        delta[other] = 0.0
        new = pattern + old / before.pow(1 / order).clamp_min(1e-12)
        delta[window] = new * (share / held(new).clamp_min(1e-12)).pow(1 / order)
        return delta.add_(x).clamp_(0, 1)


def _signs(draw: Tensor) -> Tensor:
    """-1 or 1 by the sign of numbers in [-1,1)."""
    return torch.where(draw >= 0, 1.0, -1.0).to(draw)


def _window(x: Tensor, draw: Tensor, side: int) -> Window:
    """A square of each image (B,C,H,W) at a place uniform by `draw` (B,2) in [-1,1)."""
    room = torch.tensor(x.shape[-2:], device=x.device) - side
    corner = ((draw + 1) / 2 * (room + 1)).long().minimum(room)  # 1 is possible after rounding
    along = torch.arange(side, device=x.device)
    batch = torch.arange(len(x), device=x.device).view(-1, 1, 1, 1)
    channel = torch.arange(x.shape[1], device=x.device).view(1, -1, 1, 1)
    down, across = (corner[:, :1] + along, corner[:, 1:] + along)
    return batch, channel, down[:, None, :, None], across[:, None, None, :]


@lru_cache(maxsize=16)
def _pattern(side: int, norm: str) -> Tensor:
    """Two halves of opposite sign, each falling off from its middle (equation 2), of size 1.

    Shape (2,side,side): one above the other, and one beside the other.
    """
    pattern = torch.cat((_bump(side // 2, side), -_bump(side - side // 2, side)))
    pattern /= THREATS[norm].size(pattern[None])
    return torch.stack((pattern, pattern.T))


def _bump(height: int, width: int) -> Tensor:
    rows = (torch.arange(height, dtype=torch.float64) - height // 2).abs()
    columns = (torch.arange(width, dtype=torch.float64) - width // 2).abs()
    ring = torch.maximum(rows[:, None], columns).long()
    rings = max(height, width) // 2 + 1
    weights = 1 / torch.arange(1, rings + 1, dtype=torch.float64).square()
    return weights.flip(0).cumsum(0).flip(0)[ring]
