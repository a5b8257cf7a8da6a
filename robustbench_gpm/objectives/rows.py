"""What a loss keeps of each image of a batch, whatever parts of the batch it is called with.

An objective may take a batch apart, or pass through it twice. A loss that has more to hold against
an image than its label is therefore called with rows in place of labels: its place in the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class FirstNotes:
    """The first value that is noted for each row: `values` (B,...), where `known` (B,)."""

    values: Tensor
    known: Tensor

    @classmethod
    def like(cls, values: Tensor) -> FirstNotes:
        """None noted yet; they will be shaped as `values` (B,...)."""
        known = torch.zeros(len(values), dtype=torch.bool, device=values.device)
        return cls(torch.zeros_like(values), known)

    def note(self, rows: Tensor, values: Tensor) -> None:
        """Keep `values` (b,...) for those of `rows` (b,) that have none yet."""
        new = ~self.known[rows]
        self.values[rows[new]] = values.detach()[new]
        self.known[rows[new]] = True


def rows_of(x: Tensor) -> Tensor:
    """0, 1, ... for a batch (B,...), where the batch is."""
    return torch.arange(len(x), device=x.device)
