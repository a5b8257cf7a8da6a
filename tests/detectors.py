"""Tiny detectors in float64 for the tests of detection, and labels for three images."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from robustbench_gpm.models.activations import with_activation
from robustbench_gpm.models.detection import Detector
from robustbench_gpm.models.detection_dense import DenseDetector, SmallHead
from robustbench_gpm.models.detection_two_stage import FasterRCNN, Sampling

LABELS = torch.tensor(
    [
        [[2.0, 3, 14, 15, 1], [11, 2, 23, 19, 0], [-1, -1, -1, -1, -1]],
        [[5, 4, 12, 17, 2], [-1, -1, -1, -1, -1], [3, 3, 9, 9, -3]],  # the last is not to be learnt
        [[-1, -1, -1, -1, -1]] * 3,
    ]
)


class Maps(nn.Module):
    """Two small levels of strides 4 and 8 with a smooth activation and a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 4, 5, 4, 2), nn.BatchNorm2d(4), nn.Softplus())
        self.coarser = nn.Sequential(nn.Conv2d(4, 4, 3, 2, 1), nn.Softplus())

    def forward(self, x: Tensor) -> list[Tensor]:
        fine = self.stem(x)
        return [fine, self.coarser(fine)]


def two_stage() -> Detector:
    model = FasterRCNN(Maps(), 4, 3, (4, 8), (8.0, 14.0), Sampling(24, 12, 40, 20), hidden=6)
    model.head[2], model.head[4] = nn.Softplus(), nn.Softplus()
    return model


def one_stage() -> Detector:
    return DenseDetector(Maps(), SmallHead(4, 2, 3), (4, 8), ((8.0,), (14.0,)), (0.7, 1.4))


MAKE = {"two stages": two_stage, "one stage": one_stage}
every = pytest.mark.parametrize("make", MAKE.values(), ids=MAKE.keys())


def smooth(make: Callable[[], Detector]) -> Detector:
    """In float64 and evaluation mode, with outputs that differ from anchor to anchor."""
    model = make().double()
    for name, p in model.named_parameters():
        nn.init.normal_(p, std=0.5 if p.dim() > 1 else 0.3)
        if name.endswith("conv.0.0.weight"):
            nn.init.normal_(p, std=0.2)
    if isinstance(model, FasterRCNN):  # torchvision's own head has ReLUs
        with_activation(model, "softplus")
    return model.eval()


def images(count: int = 3, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(count, 2, 24, 26, dtype=dtype)


def total(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return sum(model(x, y).values())
