"""What detectors look at: feature pyramids on ResNet-18, and how anchors fit a canvas."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool

from .options import ModelOptions

SMALLEST_ANCHOR = 4.0  # pixels
SMALL_CANVAS = 128  # below so many pixels the stem leaves its pooling out


def anchor_sides(image_size: int, levels: int) -> tuple[float, ...]:
    """The side in pixels of each level's anchor on a canvas of this height.

    A twentieth of the height on the first level, and at least 4 pixels; twice as much on each
    further one, as far as the height goes: 32 to 512 at 640 pixels, 4 to 32 at 32. 32 to 512 is
    what Lin et al. 2017 (arXiv 1612.03144) have.
    """
    first = max(SMALLEST_ANCHOR, image_size / 20)
    return tuple(min(first * 2**level, float(image_size)) for level in range(levels))


class Pyramid(nn.Module):
    """A feature pyramid (arXiv 1612.03144) on torchvision's ResNet-18, with fresh weights.

    Every batch norm is trained, and nothing is computed in place. On canvases below 128 pixels the
    pooling of the stem is left out, which makes all strides half as long.
    """

    def __init__(self, options: ModelOptions, first_stage: int, extra: ExtraFPNBlock) -> None:
        """Levels of the residual stages from `first_stage` (1 to 4) on; `extra` adds coarser."""
        super().__init__()
        self.maps = resnet_fpn_backbone(
            backbone_name="resnet18",
            weights=None,
            norm_layer=nn.BatchNorm2d,
            trainable_layers=5,
            returned_layers=list(range(first_stage, 5)),
            extra_blocks=extra,
        )
        self.channels: int = self.maps.out_channels
        if options.channels != 3:
            self.maps.body.conv1 = nn.Conv2d(options.channels, 64, 7, 2, padding=3, bias=False)
            nn.init.kaiming_normal_(self.maps.body.conv1.weight, mode="fan_out")
        small = options.image_size < SMALL_CANVAS
        if small:
            self.maps.body["maxpool"] = nn.Identity()
        levels = 5 - first_stage + (2 if isinstance(extra, TwoCoarser) else 1)
        finest = (2 if small else 4) * 2 ** (first_stage - 1)
        self.strides = tuple(finest * 2**level for level in range(levels))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps (B,channels,h,w) of images (B,C,H,W), finest first, h about H over the stride."""
        return list(self.maps(x).values())


class TwoCoarser(ExtraFPNBlock):  # type: ignore[misc]
    """Two further levels by convolutions of stride 2 (RetinaNet's P6 and P7, arXiv 1708.02002)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, 2, padding=1)
        self.act = nn.ReLU()
        self.second = nn.Conv2d(channels, channels, 3, 2, padding=1)
        for layer in (self.first, self.second):
            nn.init.kaiming_uniform_(layer.weight, a=1)
            nn.init.constant_(cast(Tensor, layer.bias), 0)

    def forward(self, results: Any, x: Any, names: Any) -> tuple[list[Tensor], list[str]]:
        """The maps and their names, each with two more; `x`, the body's own maps, plays no part."""
        del x
        sixth = self.first(results[-1])
        seventh = self.second(self.act(sixth))
        return [*results, sixth, seventh], [*names, "coarser", "coarsest"]


def one_coarser() -> ExtraFPNBlock:
    """One further level, every second cell of the last: what Faster R-CNN proposes from."""
    return LastLevelMaxPool()


def nothing_in_place(network: nn.Module) -> nn.Module:
    """`network`, whose activations now leave their inputs be: gradients are differentiated."""
    for module in network.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]
    return network
