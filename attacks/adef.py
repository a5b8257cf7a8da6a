"""ADef: the smallest smooth deformation that fools, by repeated linearisation.

Alaifari, Alberti & Gauksson, ICLR 2019, arXiv 1804.07729.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ..core import Loss, Samples
from ..deformation import identity_flow, max_displacement
from .ascent import judged, rivals
from .base import FlowAttack
from .climb import Rows
from .geometry import per_sample
from .hyperplane import linearise
from .minimum_norm import Nearest
from .smoothing import smoothed
from .transforms import scaled

LEAST_GAP = 1e-4  # logits: the step for a smaller gap may be lost to rounding, or end in a tie
# In budgets. What fools from beyond the budget may be brought into it by later rounds: of a hundred
# samples with a flow inside a budget, on two networks, all but one had come from within twice that.
BEYOND = 2.0


@dataclass(frozen=True)
class ADef(FlowAttack):
    """Steps of the flow onto linearised boundaries, until one fools; then back along its ray.

    Flows are smooth: u = S w, with S the Gaussian smoothing by `sigma` pixels. Where a wrong class
    leads the right one by f (below 0 until it fools) and a = df/du, the smallest w that brings f to
    0 gives the step -f S d / <d, S a>, lengthened by `overshoot` and cut to `stride` pixels. In the
    paper w is measured in l2: d = S a. In linf d = sign(S a), which suits a budget on the largest
    displacement: flows come out shorter by a third or more, and rougher.

    Each of the `targets` likeliest wrong classes is walked to in turn. A flow that fools is brought
    down to the largest displacement that is of use, then shortened along its ray by `halvings`
    bisections; a walk that does not fool by there ends. Where it was the nearest so far another of
    `rounds` rounds begins there: half-way, by the weight `pull`, between the next step and the
    smallest of all flows that the boundary, taken for flat there, would need.

    Unlike the paper's, this adds up one flow, in pixels of the clean image, which is read once. The
    paper warps the warped image at every step: that blurs it a little more each time, and its steps
    do not sum to the deformation that is measured. The paper steps to whichever class is nearest
    then; walking to each finds shorter flows, and costs little once one is known. It has a single
    round, and no way back from an overshoot of a tenth or more. Its sigma is 1/2 for digits and 1
    for ImageNet; the default is for small images.
    """

    minimum_norm: ClassVar[bool] = True

    norm: Literal["l2", "linf"] = "l2"
    sigma: float = 0.5
    targets: int = 3
    steps: int = 50
    overshoot: float = 0.02
    stride: float = 1.0
    halvings: int = 6
    rounds: int = 3
    pull: float = 0.5

    @property
    def unbounded(self) -> bool:
        return True

    def smaller(self, flow: Tensor, budgets: float | Tensor) -> Tensor:
        """The same flows scaled into the budgets, as smooth as before."""
        return scaled(flow, budgets)

    def deform(
        self, model: nn.Module, x: Tensor, y: Tensor, budget: float, loss: Loss, samples: Samples
    ) -> Tensor:
        rest = identity_flow(x)
        nearest = Nearest(rest, self.threat.name)
        _, fooled = judged(model, x, y, loss, samples)
        nearest.offer(rest, fooled)
        rows = (nearest.distance.clamp_max(budget) > 0).nonzero().squeeze(1)
        if len(rows) == 0:
            return rest
        _, ranked = rivals(model, x[rows], y[rows], samples.select(rows))
        for target in ranked[:, : self.targets].unbind(1):
            walk = _Walk(rows, x[rows], y[rows], target[:, None], rest[rows], samples.select(rows))
            for turn in range(self.rounds):
                closer = self._walk(model, copy(walk), nearest, budget, loss, pulled=turn > 0)
                walk.keep(closer[walk.rows])
                walk.flow = nearest.images[walk.rows]
        return nearest.images

    def _walk(
        self,
        model: nn.Module,
        walk: _Walk,
        nearest: Nearest,
        budget: float,
        loss: Loss,
        *,
        pulled: bool,
    ) -> Tensor:
        """One round, from rest or, where `pulled`, from flows that fool; what it finds is offered.

        Returns whose nearest flow it has brought nearer, (B,) bool.
        """
        closer = torch.zeros_like(nearest.distance, dtype=torch.bool)
        for step in range(self.steps):
            if len(walk.rows) == 0:
                break
            before = walk.flow
            walk.flow = self._step(model, walk, pulled=pulled and step == 0)
            fooled = self._fooled(model, walk, loss)
            useful = nearest.distance[walk.rows].clamp_max(BEYOND * budget)
            if bool(fooled.any()):
                there = walk.select(fooled)
                flow, fools = self._back(model, there, useful[fooled], loss)
                closer[there.rows] = nearest.offer(flow, fools, there.rows)
            stuck = (walk.flow == before).flatten(1).all(1)
            walk.keep(~fooled & ~stuck & (max_displacement(walk.flow) < useful))
        return closer

    def _fooled(self, model: nn.Module, walk: _Walk, loss: Loss) -> Tensor:
        images = self.render(walk.x, walk.flow)
        return judged(model, images, walk.y, loss, walk.samples)[1]

    def _step(self, model: nn.Module, walk: _Walk, *, pulled: bool) -> Tensor:
        """The flows (b,2,H,W) after a step; `pulled` ones fool, and go back to the boundary."""
        moved = _Moved(model, walk.x, self.render)
        _, leads, gradients = linearise(moved, walk.flow, walk.y, walk.targets, walk.samples)
        lead, gradient = leads[:, 0], gradients[:, 0]
        direction, slope = self._direction(gradient)
        gap = -lead if pulled else lead.abs().clamp_min(LEAST_GAP)
        further = 1 + self.overshoot
        length = (further * gap / slope).clamp(-self.stride, self.stride)
        onwards = walk.flow + per_sample(length, direction) * direction
        if not pulled:
            return onwards
        from_rest = gap + (gradient * walk.flow).flatten(1).sum(1)
        limit = max_displacement(walk.flow)
        length = (further * from_rest / slope).nan_to_num().clamp(-limit, limit)
        return (1 - self.pull) * onwards + self.pull * per_sample(length, direction) * direction

    def _direction(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Where the smallest steps lead: a flow of size 1 each, and the lead it gains, (b,) > 0."""
        tiny = torch.finfo(gradient.dtype).tiny
        largest = max_displacement(gradient).clamp_min(tiny)
        gradient = gradient / per_sample(largest, gradient)  # its squares might underflow
        steep = smoothed(gradient, self.sigma)
        direction = smoothed(steep if self.norm == "l2" else steep.sign(), self.sigma)
        size = max_displacement(direction).clamp_min(tiny)
        direction = direction / per_sample(size, direction)
        slope = (gradient * direction).flatten(1).sum(1)
        return direction, (slope * largest).clamp_min(tiny)

    def _back(
        self, model: nn.Module, walk: _Walk, useful: Tensor, loss: Loss
    ) -> tuple[Tensor, Tensor]:
        """Flows that fool scaled down to the `useful` size (b,), and for as long as they fool.

        Returns flows (b,2,H,W) and whether they fool, (b,) bool: not from beyond what is useful.
        """
        walk.flow, known = scaled(walk.flow, useful), max_displacement(walk.flow) <= useful
        if not bool(known.all()):
            known[~known] = self._fooled(model, walk.select(~known), loss)
        share, rows = torch.ones_like(useful), known.nonzero().squeeze(1)
        for turn in range(self.halvings):
            if len(rows) == 0:
                break
            tried = walk.select(rows)
            shorter = share[rows] - 0.5 ** (turn + 1)
            tried.flow = per_sample(shorter, tried.flow) * tried.flow
            share[rows] = torch.where(self._fooled(model, tried, loss), shorter, share[rows])
        return per_sample(share, walk.flow) * walk.flow, known


class _Walk(Rows):
    """Those on the way to a class each: rows (b,) of the batch, images, labels, targets (b,1)."""

    def __init__(
        self, rows: Tensor, x: Tensor, y: Tensor, targets: Tensor, flow: Tensor, samples: Samples
    ) -> None:
        self.rows, self.x, self.y, self.targets, self.flow = rows, x, y, targets, flow
        self.samples = samples

    def keep(self, chosen: Tensor) -> None:
        """Drop those that `chosen`, a mask or positions, leaves out."""
        super().keep(chosen)
        self.samples = self.samples.select(chosen)

    def select(self, chosen: Tensor) -> _Walk:
        """Those that `chosen` picks, on their own."""
        part = copy(self)
        part.keep(chosen)
        return part


class _Moved(nn.Module):
    """A model as a function of the flow by which the images x are moved."""

    def __init__(
        self, model: nn.Module, x: Tensor, render: Callable[[Tensor, Tensor], Tensor]
    ) -> None:
        super().__init__()
        self.model, self.x, self.render = model, x, render

    def forward(self, flow: Tensor) -> Tensor:
        logits: Tensor = self.model(self.render(self.x, flow))
        return logits
