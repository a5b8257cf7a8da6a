"""What a detector is: predictions without labels, each image's own losses with them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from .detection_boxes import DETECTIONS


class Detector(nn.Module, ABC):
    """A network that finds boxes on images (B,C,H,W).

    `model(x)` gives predictions (B,D,6): rows (x1,y1,x2,y2,score,class) in pixels, best first,
    padded with rows of -1; they have no graph. `model(x, y)` gives the losses that `parts` names,
    each (B,), one number an image, in training and in evaluation mode alike. Labels y (B,M,5) are
    rows (x1,y1,x2,y2,class), and those of a negative class are none.
    """

    parts: ClassVar[tuple[str, ...]]

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor | dict[str, Tensor]:
        """Predictions for images x (B,C,H,W), or losses with labels y (B,M,5)."""
        if y is not None:
            rows = self.losses(x, y.to(device=x.device, dtype=x.dtype)) if len(x) else []
            return {part: _stacked([r[i] for r in rows], x) for i, part in enumerate(self.parts)}
        with torch.no_grad():
            found = self.predictions(x) if len(x) else []
            return torch.stack(found) if found else x.new_zeros(0, DETECTIONS, 6)

    @abstractmethod
    def losses(self, x: Tensor, y: Tensor) -> Sequence[tuple[Tensor, ...]]:
        """The scalars that `parts` names, of every image of a batch that is not empty."""

    @abstractmethod
    def predictions(self, x: Tensor) -> list[Tensor]:
        """Rows (D,6) of every image of a batch that is not empty."""


def map_shapes(maps: Iterable[Tensor]) -> list[tuple[int, int]]:
    """Height and width of each map (B,C,h,w)."""
    return [(m.shape[2], m.shape[3]) for m in maps]


def _stacked(losses: list[Tensor], like: Tensor) -> Tensor:
    return torch.stack(losses) if losses else like.new_zeros(0)
