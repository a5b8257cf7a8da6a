"""What minimum-norm attacks share: one search for the nearest fooling image serves every budget."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..core import Loss, Samples
from .base import Attack
from .perturbed import Perturbed
from .threats import THREATS, Threat


@dataclass(frozen=True)
class MinimumNormAttack(Attack):
    """An attack that looks for the nearest image that fools the model."""

    minimum_norm: ClassVar[bool] = True

    norm: str = "l2"

    @property
    def threat(self) -> Threat:
        return THREATS[self.norm]

    @property
    def unbounded(self) -> bool:
        return True

    def nearest(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        budget: float = float("inf"),
        loss: Loss | None = None,
        samples: Samples | None = None,
    ) -> Tensor:
        """The nearest fooling images (B,C,H,W) found, and x itself where none was: see `find`."""
        return self.find(model, x, y, budget=budget, loss=loss, samples=samples).images

    def outcome(
        self, model: nn.Module, x: Tensor, y: Tensor, budget: float, loss: Loss, samples: Samples
    ) -> Perturbed:
        return Perturbed.changed(x, self.search(model, x, y, budget, loss, samples))

    def perturb(
        self, model: nn.Module, x: Tensor, y: Tensor, budget: float, loss: Loss, samples: Samples
    ) -> Tensor:
        found = self.outcome(model, x, y, budget, loss, samples)
        return self.within(x, found, budget).images

    @abstractmethod
    def search(
        self, model: nn.Module, x: Tensor, y: Tensor, budget: float, loss: Loss, samples: Samples
    ) -> Tensor:
        """The search itself, on a frozen model: fooling images, x where none was found."""


class Nearest:
    """The nearest fooling image of each sample so far; or flow, where x is the flow at rest."""

    def __init__(self, x: Tensor, norm: str) -> None:
        self.x, self._size = x, THREATS[norm].size
        self.images = x.clone()
        self.distance = torch.full((len(x),), torch.inf, dtype=x.dtype, device=x.device)

    def offer(self, images: Tensor, fooled: Tensor, rows: Tensor | None = None) -> Tensor:
        """Keep those of `images` (b,...) that fool and are nearer; returns which, (b,) bool.

        `rows` (b,) says whose they are; everybody's in turn if it is not given.
        """
        rows = torch.arange(len(images), device=images.device) if rows is None else rows
        distance = self._size(images - self.x[rows])
        nearer = fooled & (distance < self.distance[rows])
        self.distance[rows[nearer]] = distance[nearer]
        self.images[rows[nearer]] = images[nearer].detach()
        return nearer
