"""Networks that give every pixel its logits: torchvision's, segmentation_models_pytorch's, a U-Net.

All are unnormalised, take images (B,C,H,W) and give logits (B, classes, H, W) at the same size.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad

from ..core import Table, UserError
from .checks import in_short
from .external import optional
from .layers import conv_norm_relu, initialised
from .options import ModelOptions
from .segnext import segnext_t

UNET_WIDTHS = (16, 32, 64)


class Resized(nn.Module):
    """A backbone and a classifier; the classifier's logits, bilinearly at the images' size.

    What torchvision's segmentation networks do, less their dictionary and their auxiliary head: the
    names of the weights are theirs.
    """

    def __init__(self, backbone: nn.Module, classifier: nn.Module, key: str | None) -> None:
        """The classifier takes `key` of the backbone's features, or all of them."""
        super().__init__()
        self.backbone, self.classifier, self.key = backbone, classifier, key

    def forward(self, x: Tensor) -> Tensor:
        """Images (B,C,H,W) to logits (B,K,H,W)."""
        features = self.backbone(x)
        logits = self.classifier(features if self.key is None else features[self.key])
        return interpolate(logits, x.shape[-2:], mode="bilinear")


class Hardsigmoid(nn.Module):
    """The gates of MobileNetV3, with the second derivative that torch's own lack."""

    def forward(self, x: Tensor) -> Tensor:
        """0 up to -3, 1 from 3 on, and a line between them."""
        return (x + 3).clamp(0, 6) / 6


def torchvision_segmenter(name: str, options: ModelOptions) -> nn.Module:
    """The segmentation network that torchvision calls `name`, without its auxiliary head.

    Published weights (`options.pretrained`) are of a whole network, with a new last layer for other
    than their 21 classes; without them nothing is pretrained, the backbone included. Any number of
    channels is taken, 3 with published weights. Raises UserError where the network cannot be built,
    or its weights cannot be had.
    """
    if options.pretrained and options.channels != 3:
        raise UserError(
            f"the published weights of '{name}' are for 3 channels, and these images have "
            f"{options.channels}: train without them"
        )
    wanted: dict[str, Any] = {"weights": "DEFAULT"}
    if not options.pretrained:
        wanted = {"weights": None, "weights_backbone": None, "num_classes": options.classes}
    try:
        network: Any = torchvision.models.get_model(name, **wanted)
    except Exception as error:  # whatever the source or its download raises
        raise _failed(name, options, error) from error
    segmenter = Resized(
        network.backbone, network.classifier, None if name.startswith("lraspp") else "out"
    )
    if options.channels != 3:
        _replace_first(segmenter, options.channels)
    _fit_heads(segmenter.classifier, options.classes)
    for place, module in list(segmenter.named_modules()):
        if isinstance(module, nn.Hardsigmoid):
            segmenter.set_submodule(place, Hardsigmoid())
    return segmenter


def _replace_first(network: nn.Module, channels: int) -> None:
    """The first convolution of `network`, made anew for so many channels."""
    convolutions = [(n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d)]
    name, first = convolutions[0]
    network.set_submodule(name, _alike(first, channels, first.out_channels))


def _fit_heads(classifier: nn.Module, classes: int) -> None:
    """The last layer made anew for other classes; LR-ASPP adds up two last layers."""
    heads = ("low_classifier", "high_classifier") if hasattr(classifier, "cbr") else ("4",)
    for name in heads:
        head = classifier.get_submodule(name)
        if isinstance(head, nn.Conv2d) and head.out_channels != classes:
            classifier.set_submodule(name, _alike(head, head.in_channels, classes))


def _alike(convolution: nn.Conv2d, inputs: int, outputs: int) -> nn.Conv2d:
    bias = convolution.bias is not None
    kernel, stride, padding = convolution.kernel_size, convolution.stride, convolution.padding
    return nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=bias)  # type: ignore[arg-type]


def _failed(name: str, options: ModelOptions, error: Exception) -> UserError:
    what = "get the published weights of" if options.pretrained else "build"
    return UserError(f"could not {what} '{name}': {in_short(error)}")


class Padded(nn.Module):
    """A network for sides that are multiples of `multiple`, on images of any size.

    Below and to the right the image goes on as its last pixels; what the network says there is cut
    off again.
    """

    def __init__(self, network: nn.Module, multiple: int) -> None:
        super().__init__()
        self.network, self.multiple = network, multiple

    def forward(self, x: Tensor) -> Tensor:
        """Images (B,C,H,W) to logits (B,K,H,W)."""
        height, width = x.shape[-2:]
        below, right = -height % self.multiple, -width % self.multiple
        if below or right:
            x = pad(x, (0, right, 0, below), mode="replicate")
        logits: Tensor = self.network(x)
        return logits[..., :height, :width]


def smp_network(name: str, options: ModelOptions) -> nn.Module:
    """The network `<architecture>:<encoder>` of segmentation_models_pytorch, as unet:resnet18.

    Encoders are that package's own, or timm's as tu-<name>. Published weights
    (`options.pretrained`) are the encoder's, of ImageNet. Images of any size are padded to what the
    encoder can halve. Raises UserError where the package is absent, knows no such name, or cannot
    build or download it.
    """
    smp = optional("segmentation_models_pytorch", "smp")
    architecture, _, encoder = name.partition(":")
    if not encoder:
        raise UserError(f"'smp:{name}' names no encoder: ask for 'smp:{name}:resnet18', say")
    _require("architecture", architecture, smp.MODEL_ARCHITECTURES_MAPPING)
    if not encoder.startswith("tu-"):
        _require("encoder", encoder, smp.encoders.get_encoder_names())
    try:
        network: nn.Module = smp.create_model(
            architecture,
            encoder_name=encoder,
            encoder_weights="imagenet" if options.pretrained else None,
            in_channels=options.channels,
            classes=options.classes,
        )
    except Exception as error:  # whatever the source or its download raises
        raise _failed(f"smp:{name}", options, error) from error
    return Padded(network, int(getattr(network.encoder, "output_stride", 32)))


def _require(what: str, name: str, known: Iterable[str]) -> None:
    known = list(known)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        guess = f"did you mean '{near[0]}'?" if near else f"choose from {', '.join(known)}"
        raise UserError(f"segmentation_models_pytorch has no {what} '{name}': {guess}")


class UNet(nn.Module):
    """Two convolutions a level, halved by maxima on the way down, doubled on the way up.

    After Ronneberger et al. (2015, arXiv 1505.04597), with batch norms, edges padded and nearest
    pixels on the way up: maps are as large as what they are put beside, whatever the image's size.
    """

    def __init__(self, channels: int, classes: int, widths: tuple[int, ...] = UNET_WIDTHS) -> None:
        super().__init__()
        inputs = [channels, *widths[:-1]]
        self.down = nn.ModuleList(
            _level(before, width) for before, width in zip(inputs, widths, strict=True)
        )
        self.up = nn.ModuleList(_level(wide + narrow, narrow) for narrow, wide in pairwise(widths))
        self.halve = nn.MaxPool2d(2, ceil_mode=True)
        self.classify = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B,C,H,W) to logits (B,K,H,W)."""
        kept = [self.down[0](x)]
        for level in self.down[1:]:
            kept.append(level(self.halve(kept[-1])))
        x = kept.pop()
        for level in reversed(self.up):
            beside = kept.pop()
            enlarged = interpolate(x, beside.shape[-2:], mode="nearest")
            x = level(torch.cat([beside, enlarged], dim=1))
        logits: Tensor = self.classify(x)
        return logits


def _level(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(*conv_norm_relu(inputs, outputs), *conv_norm_relu(outputs, outputs))


def digits_segmenter(options: ModelOptions) -> nn.Module:
    """A U-Net of three levels for small images; about 118,000 weights for one channel."""
    return initialised(UNet(options.channels, options.classes))


TORCHVISION = (
    *("lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large"),
    *("deeplabv3_resnet50", "fcn_resnet50"),
)
SEGMENTERS: Table[Callable[[ModelOptions], nn.Module]] = Table(
    "segmentation model",
    {
        "digits_segmenter": digits_segmenter,
        "segnext_t": segnext_t,
        **{name: partial(torchvision_segmenter, name) for name in TORCHVISION},
    },
    also="smp:<architecture>:<encoder>",
)
