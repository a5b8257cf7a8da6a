"""Fast adaptive boundary attack (Croce & Hein 2020, arXiv 1907.02044) in linf, l2 and l1."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..core import Loss, Samples
from .ascent import judged, rivals
from .geometry import per_sample
from .hyperplane import linearise, nearest_plane, to_hyperplane
from .minimum_norm import MinimumNormAttack, Nearest


@dataclass(frozen=True)
class BoundaryWalk(MinimumNormAttack):
    """Steps onto the linearised boundary, drawn towards the clean image; what both FABs share.

    A step goes to the nearest points of the boundary's hyperplane from where the walk is and from
    the clean image, past them by the factor `eta`, and mixes the second in with a weight of at most
    `alpha_max`. From a point that fools the walk first goes back to the share `beta` of its way
    from the clean image. `restarts` beyond the first start at random points.

    With `early_stop` and a finite budget a sample leaves once it has a fooling image inside it.
    `parity` takes each hyperplane at the point that the walk has gone back to, as the authors' code
    does, for one more forward pass a step.
    """

    norm: Literal["linf", "l2", "l1"] = "linf"
    steps: int = 100
    restarts: int = 1
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9
    early_stop: bool = True
    parity: bool = False

    @abstractmethod
    def aims(self, ranked: Tensor) -> Sequence[Tensor]:
        """The classes (B,m) whose boundaries each walk in turn looks at.

        `ranked` (B,K-1) are the wrong classes by falling logit at the clean image.
        """

    def search(
        self, model: nn.Module, x: Tensor, y: Tensor, budget: float, loss: Loss, samples: Samples
    ) -> Tensor:
        logits, ranked = rivals(model, x, y, samples)
        nearest = Nearest(x, self.norm)
        nearest.offer(x, logits.argmax(1) != y)
        enough = budget if self.early_stop and math.isfinite(budget) else 0.0
        for restart in range(self.restarts):
            for classes in self.aims(ranked):
                rows = (nearest.distance > enough).nonzero().squeeze(1)
                if len(rows) == 0:
                    return nearest.images
                start = x[rows]
                here = samples.select(rows)
                if restart > 0:
                    start = self._elsewhere(start, nearest.distance[rows], budget, here)
                walk = (x[rows], y[rows], classes[rows], start, rows)
                self._walk(model, *walk, nearest, enough, loss, here)
        return nearest.images

    def _elsewhere(self, x: Tensor, distance: Tensor, budget: float, samples: Samples) -> Tensor:
        """Random points at half the distance of what is known, or half the budget if less."""
        noise = samples.uniform(x) if self.norm == "linf" else samples.normal(x)
        size = self.threat.size
        radius = torch.minimum(distance, size(torch.ones_like(x))).clamp_max(budget) / 2
        return (x + noise * per_sample(radius / size(noise), x)).clamp(0, 1)

    def _walk(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        classes: Tensor,
        at: Tensor,
        rows: Tensor,
        nearest: Nearest,
        enough: float,
        loss: Loss,
        samples: Samples,
    ) -> None:
        """One walk from the images `at`; what it finds goes to the `rows` of `nearest`.

        The pass that tells whether a point fools serves the next step too: without `parity` its
        hyperplane is taken at the fooling point itself, not at the one that the walk goes back to.
        """
        for _ in range(self.steps):
            if self.parity:
                at = self._back(model, x, y, at, rows, nearest, loss, samples)
            fooled, margins, gradients = linearise(model, at, y, classes, samples)
            nearest.offer(at, fooled, rows)
            keep = nearest.distance[rows] > enough
            if not bool(keep.all()):
                x, y, classes, at, rows = x[keep], y[keep], classes[keep], at[keep], rows[keep]
                fooled, margins, gradients = fooled[keep], margins[keep], gradients[keep]
                samples = samples.select(keep)
                if len(rows) == 0:
                    return
            at = self._step(x, at, fooled, margins, gradients)
        _, fooled = judged(model, at, y, loss, samples)
        nearest.offer(at, fooled, rows)

    def _back(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        at: Tensor,
        rows: Tensor,
        nearest: Nearest,
        loss: Loss,
        samples: Samples,
    ) -> Tensor:
        """Points that fool are kept in `nearest`, and gone back from by the share `beta`."""
        _, fooled = judged(model, at, y, loss, samples)
        nearest.offer(at, fooled, rows)
        return torch.where(per_sample(fooled, at), x + self.beta * (at - x), at)

    def _step(
        self, x: Tensor, at: Tensor, fooled: Tensor, margins: Tensor, gradients: Tensor
    ) -> Tensor:
        """The next point (equations 9 and 10), by the margins (B,m) linearised about `at`."""
        size = self.threat.size
        back = per_sample(fooled & (not self.parity), at)
        here = torch.where(back, x + self.beta * (at - x), at)
        shift = (gradients * (here - at)[:, None]).flatten(2).sum(2)
        margins = (margins + shift).nan_to_num()  # a huge gradient may overflow
        margin, normal = nearest_plane(margins, gradients, self.norm)
        from_here = to_hyperplane(here, normal, -margin, self.norm)
        ahead = margin + (normal * (x - here)).flatten(1).sum(1)
        from_x = to_hyperplane(x, normal, -ahead.nan_to_num(), self.norm)
        near, far = size(from_here), size(from_x)
        share = (near / (near + far).clamp_min(1e-12)).clamp_max(self.alpha_max)
        share = per_sample(share, x)
        mixed = (here + self.eta * from_here) * (1 - share) + (x + self.eta * from_x) * share
        return mixed.clamp(0, 1)


@dataclass(frozen=True)
class TargetedFAB(BoundaryWalk):
    """One walk towards each of the `targets` likeliest wrong classes: FAB-T of AutoAttack."""

    targets: int = 9

    def aims(self, ranked: Tensor) -> Sequence[Tensor]:
        return torch.split(ranked[:, : self.targets], 1, dim=1)


@dataclass(frozen=True)
class FAB(BoundaryWalk):
    """A walk to whichever boundary is nearest, of the `candidates` likeliest classes.

    The right class is one of them, so a step costs `candidates` - 1 backward passes.
    """

    candidates: int = 10

    def aims(self, ranked: Tensor) -> Sequence[Tensor]:
        return [ranked[:, : max(self.candidates - 1, 1)]]
