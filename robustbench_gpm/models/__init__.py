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
from .external import timm_network, torchvision_network
from .normalise import Normalised
from .onnx_graph import check_batches, onnx_network
from .options import ModelOptions
from .pyramidnet import pyramidnet
from .resnet import preact_resnet18, resnet8, resnet18, wide_resnet
from .small import digits_cnn
from .user_file import user_network
from .vgg import vgg
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


def check_name(name: str) -> None:
    """Raise UserError for what can be no model's name; nothing is built or looked for."""
    if name.endswith(".py"):
        raise UserError(f"'{name}' names no function: ask for '{name}:<function>'")
    if ":" not in name:
        MODELS[name]


def build_model(name: str, options: ModelOptions) -> nn.Module:
    """A model on images (B,C,H,W) in [0,1] that gives logits (B, classes).

    `name` is one of `MODELS`, `timm:<name>`, `torchvision:<name>`, `onnx:<file>` or
    `<file>.py:<function>`. All are wrapped in `Normalised` with the mean and std of `options`; what
    a user's function makes is left bare where these change nothing. Raises UserError, one sentence,
    for whatever cannot be found, built, or fitted to `options`.
    """
    model = _built(name, options)
    if options.activation is not None:
        size = options.image_size
        with_activation(model, options.activation, torch.zeros(1, options.channels, size, size))
    return model


def _built(name: str, options: ModelOptions) -> nn.Module:
    check_name(name)
    source, _, rest = name.partition(":")
    path, _, factory = name.rpartition(":")
    if source != "timm" and options.drop_path is not None:
        raise UserError(f"--drop_path is for timm's networks, not for '{name}': leave it out")
    if source == "timm":
        return _checked(timm_network(rest, options), options)
    if source == "torchvision":
        return _checked(torchvision_network(rest, options), options)
    if source == "onnx":
        model = _checked(onnx_network(Path(rest)), options)
        check_batches(model, options, Path(rest))
        return model
    if options.pretrained:
        raise UserError(f"there are no published weights for '{name}': load your own instead")
    if path.endswith(".py"):
        network = user_network(Path(path), factory, options.classes)
        return _checked(network, options, bare=not options.normalises)
    return Normalised(MODELS[name](options), options.mean, options.std)


def _checked(network: nn.Module, options: ModelOptions, *, bare: bool = False) -> nn.Module:
    model = network if bare else Normalised(network, options.mean, options.std)
    check_output(model, options)
    return model


__all__ = [
    "ACTIVATIONS",
    "MODELS",
    "ModelOptions",
    "Normalised",
    "build_model",
    "check_name",
    "check_output",
    "load_weights",
]
