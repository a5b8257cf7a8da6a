"""What APGD does in l1 (Croce & Hein 2021, arXiv 2103.01208, algorithms 1 and 2)."""

from __future__ import annotations

import torch
from torch import Tensor

from .climb import Climbers, Rows
from .geometry import per_sample


class SparseSteps(Rows):
    """The step rule of l1: a step of a given l1 size, shared by the largest gradient entries.

    How many entries share it is adapted to how many the best point has changed: 1/1.5 of them, from
    20% of all at a random start. Every 4% of the steps, a sample whose best point grew at least 5%
    sparser gets the whole radius as its step again and goes on from that point; any other's step is
    divided by 1.5, down to a tenth of the radius. There is no momentum.
    """

    def __init__(self, x: Tensor, start: Tensor, radius: float, *, steps: int, warm: bool) -> None:
        """`warm` says that `start` (B,C,H,W) is itself the outcome of a climb."""
        self._radius = radius
        self._every = max(4 * steps // 100, 1)
        self._count = x[0].numel() if len(x) > 0 else 1
        everything = x.new_full((len(x),), float(self._count))
        self.support = _changed(start - x) if warm else everything
        self.share = self.support / self._count / 1.5 if warm else 0.2 + 0 * everything
        self.size = x.new_full((len(x),), radius)

    def advance(self, now: Climbers, done: int) -> Tensor:
        if done > 0 and done % self._every == 0:
            support = _changed(now.best - now.x)
            sparser = support < 0.95 * self.support
            smaller = (self.size / 1.5).clamp_min(self._radius / 10)
            self.size = torch.where(sparser, torch.full_like(smaller, self._radius), smaller)
            self.share, self.support = support / self._count / 1.5, support
            now.go_back(sparser)
        step = sparse_direction(now.gradient, self.share) * per_sample(self.size, now.p)
        return project_l1(now.x, now.p + step, self._radius)


def sparse_direction(gradient: Tensor, share: Tensor) -> Tensor:
    """The signs of the largest `share` (B,) of the entries of each gradient, of l1 size 1.

    At least one entry; entries as large as the last of them are taken along, zeros are not.
    """
    flat = gradient.flatten(1).abs()
    place = ((1 - share) * flat.shape[1]).long().clamp(0, flat.shape[1] - 1)
    least = flat.sort(1).values.gather(1, place[:, None])
    signs = torch.where(flat >= least, gradient.flatten(1).sign(), torch.zeros_like(flat))
    return (signs / signs.abs().sum(1, keepdim=True).clamp_min(1)).view_as(gradient)


def project_l1(x: Tensor, adversarial: Tensor, radius: float) -> Tensor:
    """The nearest image to `adversarial` (B,C,H,W) in [0,1] and at most `radius` in l1 from x.

    By the optimality conditions (proposition 2.1) every entry of the perturbation v keeps its sign
    and shrinks to clip(|v| - level, 0, room), with room up to the edge of [0,1]. The l1 size is
    piecewise linear in the level, with its knots at |v| and |v| - room, so that a sort of the knots
    finds the level where it equals the radius; level 0 where the box alone is enough.
    """
    delta = (adversarial - x).flatten(1)
    room = torch.where(delta > 0, 1 - x.flatten(1), x.flatten(1))
    size = delta.abs()
    level = _level(size, room, radius)
    kept = torch.minimum((size - level).clamp_min(0), room)
    # Sums of many entries round: shrinking towards x by that hair leaves neither ball nor box.
    kept = kept * (radius / kept.sum(1, keepdim=True).clamp_min(1e-30)).clamp_max(1)
    return (x + (delta.sign() * kept).view_as(x)).clamp(0, 1)


def _level(size: Tensor, room: Tensor, radius: float) -> Tensor:
    """The level (B,1), at least 0, at which sum clip(size - level, 0, room) is the radius."""
    ends, starts = size, (size - room).clamp_min(0)
    # From the highest knot down: below an entry's `size` it grows, below `size - room` no more.
    knots, order = torch.cat((ends, starts), 1).sort(1, descending=True)
    growing = torch.where(order < size.shape[1], 1.0, -1.0).to(size.dtype).cumsum(1)
    drop = knots - torch.cat((knots[:, 1:], torch.zeros_like(knots[:, :1])), 1)
    total = (growing * drop).cumsum(1)  # the l1 size at the next knot down
    reached = total >= radius
    place = reached.int().argmax(1, keepdim=True)  # of the first that is large enough
    above = total.gather(1, place) - radius
    level = (knots - drop).gather(1, place) + above / growing.gather(1, place).clamp_min(1)
    return torch.where(reached.any(1, keepdim=True), level, torch.zeros_like(level))


def shrinking_radii(radius: float, steps: int) -> list[tuple[float, int]]:
    """(radius, steps) of each phase: 3, 2 and 1 radii over 30%, 30% and the rest of the steps."""
    early = 3 * steps // 10
    phases = [(3 * radius, early), (2 * radius, early), (radius, steps - 2 * early)]
    return [(size, count) for size, count in phases if count > 0]


def _changed(delta: Tensor) -> Tensor:
    """How many entries of delta (B,...) are not zero, (B,)."""
    return (delta != 0).flatten(1).sum(1).to(delta.dtype)
