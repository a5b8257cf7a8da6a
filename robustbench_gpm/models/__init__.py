"""Models by name: this package's own, and those that timm, torchvision, ONNX and files bring."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

from ..core import Table, UserError
from .activations import ACTIVATIONS, with_activation
from .checks import check_output
from .detection_dense import digits_detector, retinanet_r18
from .detection_two_stage import faster_rcnn_r18
from .external import timm_network, torchvision_network
from .normalise import Normalised, NormalisedDetector
from .onnx_graph import check_batches, onnx_network
from .options import ModelOptions
from .pyramidnet import pyramidnet
from .resnet import preact_resnet18, resnet8, resnet18, wide_resnet
from .segmentation import SEGMENTERS, TORCHVISION, smp_network
from .small import digits_cnn
from .user_file import user_network
from .vgg import vgg
from .video import SMALLEST, clip_cnn, video_network
from .weights import load_weights

MODELS: Table[Callable[[ModelOptions], nn.Module]] = Table(
    "model",
    {
        "vgg11": partial(vgg, 11),
        "vgg13": partial(vgg, 13),
        "vgg16": partial(vgg, 16),
        "vgg19": partial(vgg, 19),
        "resnet8": resnet8,
        "resnet18": resnet18,
        "preact_resnet18": preact_resnet18,
        "wrn28_10": partial(wide_resnet, 28, 10),
        "pyramidnet272": partial(pyramidnet, 272, 200),
        "digits_cnn": digits_cnn,
    },
    also="timm:<name>, torchvision:<name>, onnx:<file> or <file>.py:<function>",
)


DETECTORS: Table[Callable[[ModelOptions], nn.Module]] = Table(
    "detector",
    {
        "digits_detector": digits_detector,
        "faster_rcnn_r18": faster_rcnn_r18,
        "retinanet_r18": retinanet_r18,
    },
    also="<file>.py:<function>",
)
CLIP_NETWORKS: Table[Callable[[ModelOptions], nn.Module]] = Table(
    "video model",
    {"clip_cnn": clip_cnn, **{name: partial(video_network, name) for name in SMALLEST}},
    also="<file>.py:<function>",
)
TABLES: dict[str, Table[Callable[[ModelOptions], nn.Module]]] = {
    "classification": MODELS,
    "segmentation": SEGMENTERS,
    "detection": DETECTORS,
    "video": CLIP_NETWORKS,
    "multilabel": CLIP_NETWORKS,
}
# What stands before a colon, by task: prefix -> the network of what stands after it.
SOURCES: dict[str, dict[str, Callable[[str, ModelOptions], nn.Module]]] = {
    "classification": {
        "timm": timm_network,
        "torchvision": torchvision_network,
        "onnx": lambda path, _: onnx_network(Path(path)),
    },
    "segmentation": {"smp": smp_network},
    "detection": {},
    "video": {},
    "multilabel": {},
}
PUBLISHED = ("timm", "torchvision", "smp", *TORCHVISION, *SMALLEST)  # what has published weights


def check_name(name: str, task: str = "classification") -> None:
    """Raise UserError for what can be no model's name; nothing is built or looked for."""
    if name.endswith(".py"):
        raise UserError(f"'{name}' names no function: ask for '{name}:<function>'")
    source = name.partition(":")[0]
    if ":" not in name or (source not in SOURCES[task] and ".py:" not in name):
        TABLES[task][name]


def build_model(name: str, options: ModelOptions) -> nn.Module:
    """A model for `options.task` on images (B,C,H,W) in [0,1].

    `name` is one of the task's table, or has a prefix: `timm:<name>`, `torchvision:<name>`,
    `onnx:<file>`, `smp:<architecture>:<encoder>` or `<file>.py:<function>`. All are wrapped in
    `Normalised` with the mean and std of `options`; what a user's function makes is left bare where
    these change nothing. Raises UserError, one sentence, for whatever cannot be found, built, or
    fitted to `options`.
    """
    model = _built(name, options)
    if options.activation is not None:
        with_activation(model, options.activation, torch.zeros(1, options.channels, *options.size))
    return model


def _built(name: str, options: ModelOptions) -> nn.Module:
    check_name(name, options.task)
    source, _, rest = name.partition(":")
    if source != "timm" and options.drop_path is not None:
        raise UserError(f"--drop_path is for timm's networks, not for '{name}': leave it out")
    if options.pretrained and source not in PUBLISHED:
        raise UserError(f"there are no published weights for '{name}': load your own instead")
    if source in SOURCES[options.task]:
        model = _checked(SOURCES[options.task][source](rest, options), options)
        if source == "onnx":
            check_batches(model, options, Path(rest))
        return model
    path, _, factory = name.rpartition(":")
    if path.endswith(".py"):
        network = user_network(Path(path), factory, options.classes)
        return _checked(network, options, bare=not options.normalises)
    return _normalised(TABLES[options.task][name](options), options)


def _normalised(network: nn.Module, options: ModelOptions) -> nn.Module:
    kind = NormalisedDetector if options.task == "detection" else Normalised
    return kind(network, options.mean, options.std)


def _checked(network: nn.Module, options: ModelOptions, *, bare: bool = False) -> nn.Module:
    model = network if bare else _normalised(network, options)
    check_output(model, options)
    return model


__all__ = [
    "ACTIVATIONS",
    "MODELS",
    "TABLES",
    "ModelOptions",
    "Normalised",
    "build_model",
    "check_name",
    "check_output",
    "load_weights",
]
