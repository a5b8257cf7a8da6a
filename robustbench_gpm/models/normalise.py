"""Normalisation as a part of the model, so that attacks work on plain images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Normalised(nn.Module):
    """`network` on (x - mean) / std, channel by channel; takes images (B,C,H,W) in [0,1].

    The statistics are buffers, saved with the weights: a checkpoint carries its own normalisation.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(tuple(mean)).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(tuple(std)).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """What `network` gives for images x (B,C,H,W) in [0,1]."""
        output: Tensor = self.network((x - self.mean) / self.std)
        return output


class NormalisedDetector(Normalised):
    """The same for a detector, which gives losses where it is handed labels y (B,M,5) as well."""

    def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
        """What the detector gives for images x (B,C,H,W) in [0,1]."""
        x = (x - self.mean) / self.std
        return self.network(x) if y is None else self.network(x, y)
