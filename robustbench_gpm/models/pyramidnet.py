"""PyramidNet with bottlenecks (Han et al. 2017, arXiv 1610.02915) and ShakeDrop.

As the authors of SAM (Foret et al. 2021, arXiv 2010.01412) train it: widths are rounded, where the
paper cuts them off, and every sample has its own ShakeDrop.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..core import UserError
from .layers import conv3x3, initialised
from .options import ModelOptions

FIRST_WIDTH = 16
STAGES = 3
EXPANSION = 4  # a bottleneck gives four times the channels that its 3x3 convolution has
LAST_SURVIVAL = 0.5


class ShakeDrop(nn.Module):
    """x times a random factor, and gradients times another (Yamada et al. 2019, arXiv 1802.02375).

    With probability `survival`, in (0, 1], both factors are 1. Otherwise the forward one is uniform
    in [-1, 1] and the backward one uniform in [0, 1] (equation 6; alpha and beta there). Each
    sample has its own draw of all three, for all its channels and pixels, from torch's global
    generator, as in SAM's code; other code drops a block for the whole batch. In evaluation both
    factors are `survival`, the mean of the forward one.

    Second derivatives exist, and take the backward factor again: where f(forward * x) is
    differentiated, the gradient is backward * f' and its gradient backward^2 * f'', both at
    forward * x. What is returned in training is thus no derivative of what the forward pass
    computes, and finite differences of either do not agree with it.
    """

    def __init__(self, survival: float) -> None:
        super().__init__()
        self.survival = survival

    def forward(self, x: Tensor) -> Tensor:
        """Features (B,C,H,W) to the same shape."""
        if not self.training:
            return self.survival * x
        forward, backward = self._factors(x)
        return backward * x + (forward - backward) * x.detach()

    def _factors(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shape = (3, len(x), 1, 1, 1)
        chance, alpha, beta = torch.rand(shape, dtype=x.dtype, device=x.device)
        kept = chance < self.survival
        return (2 * alpha - 1).masked_fill(kept, 1), beta.masked_fill(kept, 1)

    def extra_repr(self) -> str:
        """What torch prints of it."""
        return f"survival={self.survival:g}"


class PyramidBottleneck(nn.Module):
    """shortcut(x) + ShakeDrop(norm, 1x1, norm, ReLU, 3x3, norm, ReLU, 1x1, norm).

    Figure 6d of Han et al. (arXiv 1610.02915) with three convolutions: no ReLU before the first and
    a norm after the last. The shortcut has no weights: it averages 2x2 pixels where the stride is 2
    and fills the new channels with zeros.
    """

    def __init__(self, inputs: int, width: int, stride: int, survival: float) -> None:
        super().__init__()
        outputs = EXPANSION * width
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, width, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(width), conv3x3(width, width, stride)
        self.norm3, self.conv3 = nn.BatchNorm2d(width), nn.Conv2d(width, outputs, 1, bias=False)
        self.norm4 = nn.BatchNorm2d(outputs)
        self.act1, self.act2 = nn.ReLU(), nn.ReLU()
        self.shake = ShakeDrop(survival)
        # Rounded up as the convolution does; a window over the edge averages what is inside.
        self.pool = nn.AvgPool2d(2, ceil_mode=True) if stride == 2 else nn.Identity()
        self.padding = (0, 0, 0, 0, 0, outputs - inputs)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B,inputs,H,W) to (B,4 width,H/stride,W/stride), sizes rounded up."""
        inner = self.act1(self.norm2(self.conv1(self.norm1(x))))
        inner = self.act2(self.norm3(self.conv2(inner)))
        residual: Tensor = self.shake(self.norm4(self.conv3(inner)))
        return residual + nn.functional.pad(self.pool(x), self.padding)


def block_widths(depth: int, widening: int) -> list[int]:
    """The widths of all bottlenecks: from 16 they grow by the same step to 16 + `widening`.

    Equation 2 of Han et al. (arXiv 1610.02915), whose alpha is `widening`, rounded to the nearest
    channel at every block. Raises UserError unless `depth` is 2 + 9 blocks a stage.
    """
    blocks, rest = divmod(depth - 2, 3 * STAGES)
    if rest or blocks < 1:
        raise UserError(f"a PyramidNet has 11, 20, 29, ... layers, not {depth}: choose 9 n + 2")
    count = STAGES * blocks
    return [round(FIRST_WIDTH + widening * block / count) for block in range(1, count + 1)]


def pyramidnet(depth: int, widening: int, options: ModelOptions) -> nn.Module:
    """PyramidNet-`depth` (alpha = `widening`) with bottlenecks and ShakeDrop, for about 32 px.

    Block l of L survives ShakeDrop with probability 1 - l / (2 L) (arXiv 1802.02375).
    Images (B,C,H,W) to logits (B, classes). Raises UserError for a depth that is not 9 n + 2.
    """
    widths = block_widths(depth, widening)
    layers = [conv3x3(options.channels, FIRST_WIDTH), nn.BatchNorm2d(FIRST_WIDTH)]
    inputs = FIRST_WIDTH
    for place, width in enumerate(widths):
        halves = place > 0 and place % (len(widths) // STAGES) == 0
        survival = 1 - (1 - LAST_SURVIVAL) * (place + 1) / len(widths)
        layers.append(PyramidBottleneck(inputs, width, 2 if halves else 1, survival))
        inputs = EXPANSION * width
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, options.classes)]
    return initialised(nn.Sequential(*layers, nn.BatchNorm2d(inputs), nn.ReLU(), *head))
