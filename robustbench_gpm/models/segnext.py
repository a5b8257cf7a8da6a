"""SegNeXt (Guo et al. 2022, arXiv 2209.08575): convolutional attention, and a matrix decomposition.

The encoder is MSCAN (figure 2 and table 2 there), the decoder the light Hamburger of Geng et al.
(2021, arXiv 2109.04553) over the last three stages. Two things differ from the authors' training:
the decomposition starts from the same bases at every call, where theirs are drawn anew, so that the
same image gives the same logits; and it is differentiated through all of its steps, which makes its
first and second derivatives those of what is computed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize
from torchvision.ops import StochasticDepth

from .options import ModelOptions

STRIPS = (7, 11, 21)  # lengths of the strip convolutions, section 3.1
LAYER_SCALE = 1e-2
TRAIN_STEPS, EVALUATION_STEPS = 6, 7
TINY = 1e-6  # in denominators of the multiplicative updates


def _depthwise(width: int, height: int, length: int) -> nn.Conv2d:
    """A convolution of height x length pixels that keeps the size, each channel to itself."""
    return nn.Conv2d(
        width, width, (height, length), padding=(height // 2, length // 2), groups=width
    )


class ConvolutionalAttention(nn.Module):
    """MSCA (equations 1 and 2): x times a 1x1 convolution of several depthwise ones of x."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.near = _depthwise(width, 5, 5)
        self.strips = nn.ModuleList(
            nn.Sequential(_depthwise(width, 1, length), _depthwise(width, length, 1))
            for length in STRIPS
        )
        self.mix = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B,C,H,W) to the same shape."""
        near = self.near(x)
        weights: Tensor = self.mix(sum((strip(near) for strip in self.strips), start=near))
        return weights * x


class Block(nn.Module):
    """Attention and then a feed-forward part, each behind a batch norm and beside a shortcut.

    What they add is scaled channel by channel, from 0.01 on, and left out of a sample in training
    with probability `drop_path`.
    """

    def __init__(self, width: int, ratio: int, drop_path: float) -> None:
        super().__init__()
        inner = width * ratio
        self.norm = nn.BatchNorm2d(width)
        self.attention = nn.Sequential(
            nn.Conv2d(width, width, 1),
            nn.GELU(),
            ConvolutionalAttention(width),
            nn.Conv2d(width, width, 1),
        )
        self.feed_forward = nn.Sequential(
            nn.BatchNorm2d(width),
            nn.Conv2d(width, inner, 1),
            _depthwise(inner, 3, 3),
            nn.GELU(),
            nn.Conv2d(inner, width, 1),
        )
        self.attention_scale = nn.Parameter(torch.full((width, 1, 1), LAYER_SCALE))
        self.feed_forward_scale = nn.Parameter(torch.full((width, 1, 1), LAYER_SCALE))
        self.drop: nn.Module = StochasticDepth(drop_path, "row") if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Features (B,C,H,W) to the same shape."""
        normed = self.norm(x)  # from here the attention has a shortcut of its own
        x = x + self.drop(self.attention_scale * (normed + self.attention(normed)))
        added: Tensor = self.drop(self.feed_forward_scale * self.feed_forward(x))
        return x + added


class ChannelNorm(nn.LayerNorm):
    """Layer norm of the channels of each pixel."""

    def forward(self, x: Tensor) -> Tensor:
        """Features (B,C,H,W) to the same shape."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class MSCAN(nn.Module):
    """The encoder: four stages of blocks, at 1/4, 1/8, 1/16 and 1/32 of the size, rounded up."""

    def __init__(
        self,
        channels: int,
        widths: Sequence[int],
        depths: Sequence[int],
        ratios: Sequence[int],
        drop_path: float,
    ) -> None:
        """`drop_path` is the last block's; from the first on it rises linearly from 0."""
        super().__init__()
        chances = iter(torch.linspace(0, drop_path, sum(depths), device="cpu").tolist())
        self.stages = nn.ModuleList()
        inputs = channels
        for place, (width, depth, ratio) in enumerate(zip(widths, depths, ratios, strict=True)):
            blocks = [Block(width, ratio, next(chances)) for _ in range(depth)]
            smaller = _halved(inputs, width) if place else _stem(inputs, width)
            self.stages.append(nn.Sequential(*smaller, *blocks, ChannelNorm(width, eps=1e-5)))
            inputs = width

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images (B,C,H,W) to the features of every stage."""
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


def _halved(inputs: int, width: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, width, 3, stride=2, padding=1), nn.BatchNorm2d(width)]


def _stem(inputs: int, width: int) -> list[nn.Module]:
    return [*_halved(inputs, width // 2), nn.GELU(), *_halved(width // 2, width)]


class Decomposition(nn.Module):
    """What is left of features when they are written as a product of two small matrices.

    Non-negative X (C, H*W) of each sample is approximated by D C' of rank `rank` by Lee and Seung's
    multiplicative updates (Geng et al., section 2.2.2 and algorithm 1): 6 steps in training, 7 in
    evaluation, and one more of the coefficients. Differentiable any number of times.
    """

    bases: Tensor

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        fixed = torch.Generator().manual_seed(0)
        bases = torch.rand(width, rank, generator=fixed, device="cpu")
        # No part of the weights: the same in every network of this shape.
        self.register_buffer("bases", normalize(bases, dim=0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Non-negative features (B,C,H,W) to their approximation, of the same shape."""
        flat = x.flatten(2)
        bases = self.bases.to(x.dtype).expand(x.shape[0], -1, -1)
        coefficients = torch.softmax(flat.mT @ bases, dim=-1)
        for _ in range(TRAIN_STEPS if self.training else EVALUATION_STEPS):
            coefficients = _updated(coefficients, flat.mT, bases)
            bases = _updated(bases, flat, coefficients)
        coefficients = _updated(coefficients, flat.mT, bases)
        return (bases @ coefficients.mT).view_as(x)


def _updated(factor: Tensor, x: Tensor, other: Tensor) -> Tensor:
    """`factor` (B,n,r) of x (B,n,m) = factor @ other (B,m,r) transposed, one step nearer."""
    return factor * (x @ other) / (factor @ (other.mT @ other) + TINY)


class HamHead(nn.Module):
    """The decoder: features of some stages, at the first one's size, squeezed and decomposed."""

    def __init__(
        self, inputs: int, width: int, rank: int, groups: int, classes: int, dropout: float
    ) -> None:
        super().__init__()

        def mixed(narrower: int) -> list[nn.Module]:
            return [nn.Conv2d(narrower, width, 1, bias=False), nn.GroupNorm(groups, width)]

        self.squeeze = nn.Sequential(*mixed(inputs), nn.ReLU())
        self.ham = nn.Sequential(
            nn.Conv2d(width, width, 1), nn.ReLU(), Decomposition(width, rank), *mixed(width)
        )
        self.join = nn.ReLU()
        self.align = nn.Sequential(*mixed(width), nn.ReLU())
        self.dropout, self.classify = nn.Dropout2d(dropout), nn.Conv2d(width, classes, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Features (B,_,h,w), the largest first, to logits (B,K,h,w) at the size of the first."""
        size = features[0].shape[-2:]
        resized = [interpolate(f, size, mode="bilinear") for f in features[1:]]
        x = self.squeeze(torch.cat([features[0], *resized], dim=1))
        x = self.align(self.join(x + self.ham(x)))
        logits: Tensor = self.classify(self.dropout(x))
        return logits


class SegNeXt(nn.Module):
    """Images (B,C,H,W) to logits (B,K,H,W): MSCAN, and a head over all its stages but the first."""

    def __init__(
        self,
        channels: int,
        classes: int,
        widths: Sequence[int] = (32, 64, 160, 256),
        depths: Sequence[int] = (3, 3, 5, 2),
        ratios: Sequence[int] = (8, 8, 4, 4),
        head_width: int = 256,
        rank: int = 16,
        groups: int = 32,
        drop_path: float = 0.1,
        dropout: float = 0.1,
    ) -> None:
        """The defaults are SegNeXt-T. `groups`, of the head's norms, divides `head_width`."""
        super().__init__()
        self.encoder = MSCAN(channels, widths, depths, ratios, drop_path)
        self.head = HamHead(sum(widths[1:]), head_width, rank, groups, classes, dropout)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits at the images' size, bilinear between those at an eighth of it."""
        logits = self.head(self.encoder(x)[1:])
        return interpolate(logits, x.shape[-2:], mode="bilinear")


def _initialise(network: SegNeXt) -> None:
    """Normal, so that a convolution keeps the variance of what flows back; the last one small."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            area = math.prod(module.kernel_size)
            fan_out = area * module.out_channels // module.groups
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    nn.init.normal_(network.head.classify.weight, std=0.01)


def segnext_t(options: ModelOptions) -> nn.Module:
    """SegNeXt-T: images (B,C,H,W) to logits (B, classes, H, W); about 4.3 million weights.

    Images of any size can be evaluated. In training, batch norm needs more than one value a
    channel, which a single image of at most 32 x 32 pixels does not give.
    """
    return SegNeXt(options.channels, options.classes)
