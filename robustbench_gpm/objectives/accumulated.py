"""Gradient accumulation: a large batch's gradient, in parts that fit into memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..core import Loss
from ..fields import flag
from .base import Around, Objective
from .weights import Gradients, accumulate, add_to_grad, gradient_of


@dataclass(frozen=True)
class Accumulation(Around):
    """The flag of gradient accumulation."""

    accumulate: int = flag(
        1,
        "gradient accumulation: parts that each batch goes through the network in; the step is "
        "that of the whole batch, but for batch norms, which see a part at a time",
        at_least=1,
    )

    @property
    def active(self) -> bool:
        return self.accumulate > 1

    @property
    def label(self) -> str:
        return ""  # the result is meant to be the same

    def around(self, inner: Objective) -> Objective:
        return Accumulated(self.accumulate, inner)


@dataclass(frozen=True)
class Accumulated:
    """The mean of `inner` over a batch, taken in so many even parts, weighted by their shares.

    Around the penalised loss, and inside what moves the weights: so SAM's first gradient is that of
    the whole batch. An attack around it works on the whole batch as well.
    """

    parts: int
    inner: Objective

    def at(self, epoch: float) -> Accumulated:
        """See `Objective.at`."""
        return replace(self, inner=self.inner.at(epoch))

    def backward(self, model: nn.Module, x: Tensor, y: Tensor, loss: Loss) -> dict[str, Tensor]:
        """See `Objective.backward`; logs the means of what `inner` logs."""
        gradient: Gradients = {}
        log: dict[str, Tensor] = {}
        # Not a single sample, of which batch norms can take no variance.
        parts = torch.arange(len(x)).tensor_split(max(1, min(self.parts, len(x) // 2)))
        for images, labels, share in in_groups(x, y, [len(part) for part in parts]):
            part, seen = gradient_of(self.inner, model, images, labels, loss)
            accumulate(gradient, part, share)
            accumulate(log, seen, share)
        add_to_grad(gradient)
        return log


def in_groups(
    x: Tensor, y: Tensor, sizes: int | list[int]
) -> Iterator[tuple[Tensor, Tensor, float]]:
    """Images x and labels y (B,...) in groups, by `torch.split`, and each group's share of B."""
    for images, labels in zip(torch.split(x, sizes), torch.split(y, sizes), strict=True):
        yield images, labels, len(images) / len(x)
