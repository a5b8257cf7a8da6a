"""VGG (Simonyan and Zisserman 2015, arXiv 1409.1556, table 1) with batch norm and a linear head."""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from .layers import conv_norm_relu, initialised
from .options import ModelOptions

STAGE_WIDTHS = (64, 128, 256, 512, 512)
# How many convolutions each of the five stages has: columns A, B, D and E of the table.
STAGE_DEPTHS = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
SMALLEST = 32  # five poolings halve the image


def vgg(depth: int, options: ModelOptions) -> nn.Module:
    """VGG of 11, 13, 16 or 19 layers: images (B,C,S,S), S >= 32, to logits (B, classes).

    The three linear layers of the paper, made for 224 pixels, are one here, after an average over
    whatever is left of the image. Raises UserError for smaller images.
    """
    options.require_size(SMALLEST, f"vgg{depth}")
    layers: list[nn.Module] = []
    widths = (options.channels, *STAGE_WIDTHS)
    for (before, width), count in zip(pairwise(widths), STAGE_DEPTHS[depth], strict=True):
        layers += conv_norm_relu(before, width)
        for _ in range(count - 1):
            layers += conv_norm_relu(width, width)
        layers.append(nn.MaxPool2d(2))
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(STAGE_WIDTHS[-1], options.classes)]
    return initialised(nn.Sequential(*layers, *head))
