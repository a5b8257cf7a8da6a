"""What an attack makes of images: pixels moved by a flow, then changed in intensity."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass
class Perturbed:
    """Perturbed images and how they came about, one row a sample.

    images (B,C,H,W) in [0,1]: the clean images read where `flow` (B,2,H,W) says, in pixels, plus
    `change` (B,C,H,W) in image units. Either is zero where an attack makes no use of it.
    """

    images: Tensor
    flow: Tensor
    change: Tensor

    @classmethod
    def moved(cls, images: Tensor, flow: Tensor) -> Perturbed:
        """Images that a flow alone has made."""
        return cls(images.detach(), flow.detach(), torch.zeros_like(images))

    @classmethod
    def changed(cls, x: Tensor, images: Tensor) -> Perturbed:
        """Images x whose intensities alone were changed."""
        flow = torch.zeros_like(x[:, :1]).expand(-1, 2, -1, -1).contiguous()
        return cls(images.detach(), flow, images.detach() - x)

    @property
    def moves(self) -> Tensor:
        """Whose pixels are moved, (B,) bool."""
        return (self.flow != 0).flatten(1).any(1)

    @property
    def changes(self) -> Tensor:
        """Whose intensities are changed, (B,) bool."""
        return (self.change != 0).flatten(1).any(1)

    def put(self, where: Tensor, other: Perturbed) -> None:
        """Take over the other's rows for the samples that `where` (a mask or positions) picks."""
        channels = max(self.flow.shape[1], other.flow.shape[1])
        self.flow = _widened(self.flow, channels)
        self.flow[where] = _widened(other.flow, channels)
        self.images[where], self.change[where] = other.images, other.change

    def select(self, where: Tensor) -> Perturbed:
        """The rows that `where` picks."""
        return Perturbed(*(getattr(self, field.name)[where] for field in fields(self)))


def _widened(flow: Tensor, channels: int) -> Tensor:
    """A flow of all frames of a clip (B,2,H,W) as one for every frame; the same where it is."""
    frames = channels // flow.shape[1]
    return flow if frames == 1 else flow.repeat(1, frames, 1, 1)
