"""What is done to a batch of training images and their labels: mixing, and softer labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from ..fields import check_ranges, flag


@dataclass(frozen=True)
class Mixing:
    """Flags of Mixup (Zhang et al. 2018, arXiv 1710.09412), CutMix (Yun et al. 2019, 1905.04899)
    and label smoothing (Szegedy et al. 2016, arXiv 1512.00567).

    Of Mixup and CutMix, where both are asked for, a coin chooses one for each batch.
    """

    mixup: float = flag(
        0.0, "Mixup: alpha of the Beta distribution of shares; 0 for none", at_least=0
    )
    cutmix: float = flag(0.0, "CutMix: the same, of the area", at_least=0)
    label_smoothing: float = flag(
        0.0, "share of each label that is spread evenly over all classes", at_least=0, at_most=1
    )

    def __post_init__(self) -> None:
        """Raise UserError for the first number out of its range."""
        check_ranges(self)

    @property
    def soft(self) -> bool:
        """Whether labels become shares of classes."""
        return any((self.mixup, self.cutmix, self.label_smoothing))

    def __call__(self, x: Tensor, y: Tensor, classes: int) -> tuple[Tensor, Tensor]:
        """Images x (B,C,H,W) and class indices y (B,) to images and soft labels (B,classes).

        Each image is mixed with the one before it in the batch. Draws from torch's global stream.
        """
        mixers: list[nn.Module] = []
        if self.mixup:
            mixers.append(v2.MixUp(alpha=self.mixup, num_classes=classes))
        if self.cutmix:
            mixers.append(v2.CutMix(alpha=self.cutmix, num_classes=classes))
        shares = nn.functional.one_hot(y, classes).to(x.dtype)
        if mixers:
            chosen = int(torch.randint(len(mixers), ()))
            x, shares = mixers[chosen](x, y)
        return x, (1 - self.label_smoothing) * shares + self.label_smoothing / classes
