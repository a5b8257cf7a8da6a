"""Networks for clips: torchvision's, and a small one for small clips such as moving digits.

A clip of T frames with C channels is an image of T*C channels, frame after frame.
"""

from __future__ import annotations

import math
from typing import Any

import torchvision
from torch import Tensor, nn
from torchvision.models.video import MViT

from ..core import Table, UserError
from .checks import in_short
from .external import with_head
from .options import ModelOptions

COLOURS = 3
# Frames and pixels that a clip needs, so that the last layers do not see padding alone.
SMALLEST: Table[tuple[int, int]] = Table(
    "video network",
    {
        "r3d_18": (1, 16),
        "r2plus1d_18": (1, 16),
        "mc3_18": (1, 16),
        "mvit_v2_s": (2, 32),
        "swin3d_t": (2, 32),
    },
)

SMALL_WIDTHS = (16, 32, 48)
SMALL_LEAST = 8


class Clips(nn.Module):
    """`network`, which takes clips (B,C,T,H,W), on clips as images (B,T*C,H,W)."""

    def __init__(self, network: nn.Module, frames: int) -> None:
        """`frames` is T."""
        super().__init__()
        self.network = network
        self.frames = frames

    def forward(self, x: Tensor) -> Tensor:
        """What `network` gives for images x (B,T*C,H,W), frame after frame."""
        clips = x.unflatten(1, (self.frames, -1)).transpose(1, 2)  # type: ignore[no-untyped-call]
        output: Tensor = self.network(clips)
        return output


def video_network(name: str, options: ModelOptions) -> nn.Module:
    """A network of torchvision on clips (B,T*C,S,S), of C = 1 or 3 channels, to logits.

    `name` is r3d_18, r2plus1d_18, mc3_18 (Tran et al. 2018, arXiv 1711.11248), mvit_v2_s (Li et al.
    2022, arXiv 2112.01526) or swin3d_t (Liu et al. 2022, arXiv 2106.13230); the pretrained ones
    know Kinetics-400 and get a new head for other classes. A grey clip is seen as a colour clip
    with three equal channels. mvit_v2_s is one for 16 frames of 224 pixels, whose tables of
    relative places are read between their entries for other clips. Raises UserError for clips that
    the network cannot take, and where the published weights cannot be had.
    """
    _check_clip(name, options)
    channels = _channels(name, options)
    if channels not in (1, COLOURS):
        raise UserError(
            f"{name} takes frames of 1 or {COLOURS} channels, and these have {channels}: choose "
            f"clip_cnn"
        )
    wanted: dict[str, Any] = {"weights": "DEFAULT" if options.pretrained else None}
    if not options.pretrained:
        wanted["num_classes"] = options.classes
    try:
        network: nn.Module = torchvision.models.get_model(name, **wanted)
    except Exception as error:  # whatever torchvision or its download raises
        what = "get the published weights of" if options.pretrained else "build"
        raise UserError(f"could not {what} '{name}': {in_short(error)}") from error
    if channels == 1:
        _take_grey(network)
    if isinstance(network, MViT):
        _take_size(network, options.frames, options.image_size)
    return Clips(with_head(network, options.classes), options.frames)


def clip_cnn(options: ModelOptions) -> nn.Module:
    """Four 3D convolutions: clips (B,T*C,S,S), S >= 8, to logits (B, classes).

    About 120,000 weights for one channel and eight classes. Time keeps its length, so that any
    number of frames will do; the sides are halved twice. What the head sees is averaged over the
    whole clip: how things move, and not where. Raises UserError for smaller images.
    """
    if options.image_size < SMALL_LEAST:
        raise UserError(
            f"clip_cnn needs images of at least {SMALL_LEAST} pixels, and these have "
            f"{options.image_size}: resize the clips"
        )
    first, second, third = SMALL_WIDTHS
    layers = [
        *_conv_norm_relu(_channels("clip_cnn", options), first, stride=2),
        *_conv_norm_relu(first, second),
        nn.MaxPool3d((1, 2, 2)),
        *_conv_norm_relu(second, third),
        *_conv_norm_relu(third, third),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(third, options.classes),
    ]
    return Clips(_initialised(nn.Sequential(*layers)), options.frames)


def _channels(name: str, options: ModelOptions) -> int:
    """Channels a frame."""
    frames = options.frames
    channels, rest = divmod(options.channels, frames)
    if rest:
        raise UserError(
            f"{name} cannot part {options.channels} channels into {frames} frames: ask for as many "
            f"frames as the data set's clips have"
        )
    return channels


def _check_clip(name: str, options: ModelOptions) -> None:
    """Raise UserError for a length or a size of clips that the network cannot take."""
    frames, size = options.frames, options.image_size
    least_frames, least_size = SMALLEST[name]
    if frames < least_frames or size < least_size:
        raise UserError(
            f"{name} needs clips of at least {least_frames} frames of {least_size} pixels, and "
            f"these have {frames} of {size}: ask for longer or larger ones, or choose clip_cnn"
        )


def _take_grey(network: nn.Module) -> None:
    """Let the first convolution take one channel as it took three equal ones."""
    name, first = next((n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv3d))
    grey = nn.Conv3d(
        1,
        first.out_channels,
        first.kernel_size,  # type: ignore[arg-type]
        first.stride,  # type: ignore[arg-type]
        first.padding,  # type: ignore[arg-type]
        bias=first.bias is not None,
    )
    grey.weight = nn.Parameter(first.weight.detach().sum(1, keepdim=True))
    grey.bias = first.bias
    network.set_submodule(name, grey)


def _take_size(network: MViT, frames: int, size: int) -> None:
    """Tell how many patches there are of clips of `frames` x `size` x `size`."""
    _, down, across = network.conv_proj.stride
    patches = network.pos_encoding
    patches.temporal_size = math.ceil(frames / network.conv_proj.stride[0])
    patches.spatial_size = (math.ceil(size / down), math.ceil(size / across))


def _conv_norm_relu(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    """3x3x3 convolution (time keeps its length), batch norm, ReLU; nothing in place."""
    steps = (1, stride, stride)
    convolution = nn.Conv3d(inputs, outputs, 3, steps, padding=1, bias=False)
    return [convolution, nn.BatchNorm3d(outputs), nn.ReLU()]


def _initialised(network: nn.Module) -> nn.Module:
    """Fresh weights, as `layers.initialised` has them for images."""
    for module in network.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)
    return network
