"""Augmentation beyond crops and mirror images: RandAugment and random erasing."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from ..fields import check_ranges, flag
from .augment import Augmentation

OPERATIONS, CHANCE = (
    2,
    0.5,
)  # of RandAugment: how many are drawn, and how likely each is carried out
BINS = 31  # torchvision's, from no distortion to the strongest
STRONGEST = 10  # on the scale of the recipes


@dataclass(frozen=True)
class Distortions:
    """Flags of RandAugment (Cubuk et al. 2020, 1909.13719) and erasing (Zhong et al., 1708.04896).

    RandAugment as in the recipes of vision transformers: two operations of torchvision's fourteen,
    each carried out half of the time, at a magnitude out of 10 that does not vary.
    """

    randaugment: float = flag(
        0.0, "RandAugment: magnitude out of 10; 0 for none", at_least=0, at_most=STRONGEST
    )
    random_erasing: float = flag(
        0.0, "share of the images in which a rectangle is put out by noise", at_least=0, at_most=1
    )

    def __post_init__(self) -> None:
        """Raise UserError for the first number out of its range."""
        check_ranges(self)

    def after(self, augmentation: Augmentation) -> Augmentation:
        """The augmentation with these put after it in training."""
        steps = [] if augmentation.train is None else [augmentation.train]
        if self.randaugment > 0:
            magnitude = round(self.randaugment / STRONGEST * (BINS - 1))
            drawn = v2.RandAugment(num_ops=1, magnitude=magnitude, num_magnitude_bins=BINS)
            steps += [v2.RandomApply([drawn], p=CHANCE)] * OPERATIONS
        if self.random_erasing > 0:
            steps.append(_Erasing(self.random_erasing))
        return replace(augmentation, train=v2.Compose(steps)) if steps else augmentation


class _Erasing(nn.Module):
    """A rectangle of 2 to 33% of the image, each pixel of it any colour."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.mask = v2.RandomErasing(p=share, value=0)

    def forward(self, image: Tensor) -> Tensor:
        """Bytes (C,H,W) to bytes (C,H,W)."""
        kept = self.mask(torch.ones_like(image)).bool()
        noise = torch.randint(256, image.shape, dtype=torch.uint8)
        return torch.where(kept, image, noise)
