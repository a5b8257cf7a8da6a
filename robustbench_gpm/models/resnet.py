"""Residual networks for images of about 32 pixels."""

from __future__ import annotations

from torch import Tensor, nn

from .layers import conv3x3, initialised
from .options import ModelOptions

STAGE_WIDTHS = (64, 128, 256, 512)
BLOCKS_A_STAGE = 2


class BasicBlock(nn.Module):
    """relu(shortcut(x) + two convolutions with batch norm), He et al. 2016 (arXiv 1512.03385)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = conv3x3(inputs, outputs, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.norm2 = conv3x3(outputs, outputs), nn.BatchNorm2d(outputs)
        self.act1, self.act2 = nn.ReLU(), nn.ReLU()
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Features (B,inputs,H,W) to (B,outputs,H/stride,W/stride)."""
        inner = self.act1(self.norm1(self.conv1(x)))
        output: Tensor = self.act2(self.norm2(self.conv2(inner)) + self.shortcut(x))
        return output


class PreActivationBlock(nn.Module):
    """Norm and ReLU before each convolution, He et al. 2016 (arXiv 1603.05027, figure 4e).

    Where the shape changes, the shortcut is a 1x1 convolution of the activated features, as in wide
    residual networks (Zagoruyko and Komodakis 2016, arXiv 1605.07146).
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), conv3x3(inputs, outputs, stride)
        self.norm2, self.conv2 = nn.BatchNorm2d(outputs), conv3x3(outputs, outputs)
        self.act1, self.act2 = nn.ReLU(), nn.ReLU()
        self.projection: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B,inputs,H,W) to (B,outputs,H/stride,W/stride)."""
        active = self.act1(self.norm1(x))
        shortcut: Tensor = x if self.projection is None else self.projection(active)
        inner: Tensor = self.conv2(self.act2(self.norm2(self.conv1(active))))
        return inner + shortcut


def stages(
    block: type[nn.Module], inputs: int, widths: tuple[int, ...], count: int
) -> list[nn.Module]:
    """`count` blocks of each width; every stage but the first begins by halving the image."""
    blocks: list[nn.Module] = []
    for stage, width in enumerate(widths):
        for place in range(count):
            blocks.append(block(inputs, width, 2 if stage > 0 and place == 0 else 1))
            inputs = width
    return blocks


def _head(inputs: int, classes: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes)]


def resnet18(options: ModelOptions) -> nn.Module:
    """ResNet-18 (arXiv 1512.03385) with a 3x3 stem and no first pooling, for images about 32 px.

    Images (B,C,H,W) to logits (B, classes).
    """
    first, last = STAGE_WIDTHS[0], STAGE_WIDTHS[-1]
    stem = [conv3x3(options.channels, first), nn.BatchNorm2d(first), nn.ReLU()]
    body = stages(BasicBlock, first, STAGE_WIDTHS, BLOCKS_A_STAGE)
    return initialised(nn.Sequential(*stem, *body, *_head(last, options.classes)))


def resnet8(options: ModelOptions) -> nn.Module:
    """Eight layers: a 3x3 stem of stride 2, then one block of each width 32, 64 and 128.

    Small enough to train and attack on a processor. Images (B,C,H,W) to logits (B, classes).
    """
    widths = (32, 64, 128)
    stem = [conv3x3(options.channels, widths[0], 2), nn.BatchNorm2d(widths[0]), nn.ReLU()]
    body = stages(BasicBlock, widths[0], widths, 1)
    return initialised(nn.Sequential(*stem, *body, *_head(widths[-1], options.classes)))


def preact_resnet18(options: ModelOptions) -> nn.Module:
    """ResNet-18 with pre-activation (arXiv 1603.05027), closed by a last norm and ReLU as there.

    Images (B,C,H,W), about 32 px, to logits (B, classes).
    """
    first, last = STAGE_WIDTHS[0], STAGE_WIDTHS[-1]
    body = stages(PreActivationBlock, first, STAGE_WIDTHS, BLOCKS_A_STAGE)
    end = [nn.BatchNorm2d(last), nn.ReLU(), *_head(last, options.classes)]
    return initialised(nn.Sequential(conv3x3(options.channels, first), *body, *end))


def wide_resnet(depth: int, factor: int, options: ModelOptions) -> nn.Module:
    """WRN-depth-factor (Zagoruyko and Komodakis 2016, arXiv 1605.07146, table 1), without dropout.

    Depth is 6 blocks a stage plus 4. Images (B,C,H,W), about 32 px, to logits (B, classes).
    """
    widths = tuple(width * factor for width in (16, 32, 64))
    body = stages(PreActivationBlock, 16, widths, (depth - 4) // 6)
    end = [nn.BatchNorm2d(widths[-1]), nn.ReLU(), *_head(widths[-1], options.classes)]
    return initialised(nn.Sequential(conv3x3(options.channels, 16), *body, *end))
