"""A small network for small images, such as handwritten digits of 8x8 pixels."""

from __future__ import annotations

from torch import nn

from .layers import conv_norm_relu, initialised
from .options import ModelOptions

WIDTHS = (32, 48)
SMALLEST = 8


def digits_cnn(options: ModelOptions) -> nn.Module:
    """Four convolutions in two stages: images (B,C,S,S), S >= 8, to logits (B, classes).

    About 46,000 weights for one channel and ten classes. What the head sees is averaged to 2x2, so
    that it still knows where in the image a stroke is. Raises UserError for smaller images.
    """
    options.require_size(SMALLEST, "digits_cnn")
    narrow, wide = WIDTHS
    layers = [
        *conv_norm_relu(options.channels, narrow),
        *conv_norm_relu(narrow, narrow),
        nn.MaxPool2d(2),
        *conv_norm_relu(narrow, wide),
        *conv_norm_relu(wide, wide),
        nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(wide * 4, options.classes),
    ]
    return initialised(nn.Sequential(*layers))
