"""DeepFool (Moosavi-Dezfooli et al. 2016, arXiv 1511.04599, algorithm 2) in l2 and linf."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..core import Loss, Samples
from .ascent import rivals
from .geometry import per_sample
from .hyperplane import linearise, nearest_plane, to_hyperplane
from .minimum_norm import MinimumNormAttack, Nearest


@dataclass(frozen=True)
class DeepFool(MinimumNormAttack):
    """Steps onto the nearest linearised boundary and past it by `overshoot`, until one fools.

    A step ends inside [0,1]: of pixels already at an end the published step, which knows of no
    ends, would lose its part to rounding, and many images would never fool. Where no pixel comes to
    an end it is the published step. In the end the last step, which may have gone too far, is
    halved `halvings` times to where it begins to fool, a forward pass each.

    Of the classes, the `candidates` likeliest at the clean image are looked at; the right one is
    among them, so a step costs two forward and `candidates` - 1 backward passes: the first forward
    pass says who is done, and spares them the rest.
    """

    norm: Literal["l2", "linf"] = "l2"
    steps: int = 50
    overshoot: float = 0.02
    candidates: int = 10
    halvings: int = 6

    def search(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        budget: float,  # noqa: ARG002 - an iterate beyond it may still be on its way
        loss: Loss,
        samples: Samples,
    ) -> Tensor:
        logits, ranked = rivals(model, x, y, samples)
        nearest, before = Nearest(x, self.norm), x.clone()
        fooled = logits.argmax(1) != y
        nearest.offer(x, fooled)
        rows = (~fooled).nonzero().squeeze(1)
        here, at, labels = samples.select(rows), x[rows], y[rows]
        classes = ranked[rows, : max(self.candidates - 1, 1)]
        for _ in range(self.steps):
            if len(rows) == 0 or classes.shape[1] == 0:
                break
            before[rows] = at
            at = self._step(model, at, labels, classes, here)
            with torch.no_grad():
                _, fooled = loss.judged(model, at, labels)
            here.book(forwards=1)
            nearest.offer(at, fooled, rows)
            keep = ~fooled
            rows, at, labels = rows[keep], at[keep], labels[keep]
            classes, here = classes[keep], here.select(keep)
        self._halve(model, before, y, nearest, loss, samples)
        return nearest.images

    def _step(
        self, model: nn.Module, at: Tensor, y: Tensor, classes: Tensor, samples: Samples
    ) -> Tensor:
        _, margins, gradients = linearise(model, at, y, classes, samples)
        margin, normal = nearest_plane(margins, gradients, self.norm)
        step = to_hyperplane(at, normal, -margin, self.norm)
        return (at + (1 + self.overshoot) * step).clamp(0, 1)

    @torch.no_grad()
    def _halve(
        self,
        model: nn.Module,
        before: Tensor,
        y: Tensor,
        nearest: Nearest,
        loss: Loss,
        samples: Samples,
    ) -> None:
        """Look for the first fooling image of the last step, which began at the images `before`."""
        rows = ((nearest.distance > 0) & nearest.distance.isfinite()).nonzero().squeeze(1)
        if len(rows) == 0:
            return
        start, step = before[rows], nearest.images[rows] - before[rows]
        share, samples = torch.ones_like(nearest.distance[rows]), samples.select(rows)
        for turn in range(self.halvings):
            tried = share - 0.5 ** (turn + 1)
            images = start + per_sample(tried, start) * step
            _, fooled = loss.judged(model, images, y[rows])
            samples.book(forwards=1)
            nearest.offer(images, fooled, rows)
            share = torch.where(fooled, tried, share)
