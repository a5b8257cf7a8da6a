"""Networks from timm and torchvision, unnormalised, with a head for the classes at hand."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from typing import Any

import torchvision
from torch import nn

from ..core import UserError
from .checks import in_short
from .options import ModelOptions

AUXILIARY_HEADS = ("googlenet", "inception_v3")


def optional(module: str, extra: str) -> Any:
    """The imported `module`, which only the extra brings; UserError where it is not installed."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UserError(
            f"{module} is not installed: run pip install 'robustbench_gpm[{extra}]'"
        ) from error


def _unknown(source: str, name: str, known: Iterable[str]) -> UserError:
    near = difflib.get_close_matches(name, list(known), n=1)
    guess = f"did you mean '{near[0]}'?" if near else f"see {source}.list_models()"
    return UserError(f"{source} has no classification model '{name}': {guess}")


def _failed(source: str, name: str, pretrained: bool, error: Exception) -> UserError:
    what = "get the published weights of" if pretrained else "build"
    return UserError(f"could not {what} {source} model '{name}': {in_short(error)}")


def timm_network(name: str, options: ModelOptions) -> nn.Module:
    """The network timm calls `name`; one that only takes one image size is made for this one.

    Raises UserError where timm is absent, knows no such model or cannot build or download it.
    """
    timm = optional("timm", "timm")
    hosted = name.startswith(("hf-hub:", "hf_hub:"))
    if not hosted and not timm.is_model(name):
        raise _unknown("timm", name, timm.list_models())
    config = None if hosted else timm.get_pretrained_cfg(name, allow_unregistered=True)
    fixed_size = config is not None and config.fixed_input_size
    more: dict[str, Any] = {"img_size": options.image_size} if fixed_size else {}
    if options.drop_path is not None:
        more["drop_path_rate"] = options.drop_path
    try:
        network: nn.Module = timm.create_model(
            name,
            pretrained=options.pretrained,
            num_classes=options.classes,
            in_chans=options.channels,
            **more,
        )
    except Exception as error:  # whatever the source or its download raises
        raise _failed("timm", name, options.pretrained, error) from error
    return network


def torchvision_network(name: str, options: ModelOptions) -> nn.Module:
    """The network torchvision calls `name`; a pretrained one gets a new head for other classes.

    Raises UserError where torchvision knows no such classification model or cannot build or
    download it.
    """
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise _unknown("torchvision", name, known)
    wanted: dict[str, Any] = {"weights": "DEFAULT"} if options.pretrained else {"weights": None}
    if not options.pretrained:
        wanted["num_classes"] = options.classes
    if name in AUXILIARY_HEADS:
        wanted["aux_logits"] = False
    try:
        network: nn.Module = torchvision.models.get_model(name, **wanted)
    except Exception as error:  # whatever the source or its download raises
        raise _failed("torchvision", name, options.pretrained, error) from error
    return with_head(network, options.classes)


def with_head(network: nn.Module, classes: int) -> nn.Module:
    """`network` with its last linear layer (or convolution) made anew, unless it fits already."""
    heads = [
        (name, module)
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    ]
    name, head = heads[-1]
    bias = head.bias is not None
    fresh: nn.Module
    if isinstance(head, nn.Linear):
        fits = head.out_features == classes
        fresh = nn.Linear(head.in_features, classes, bias=bias)
    else:
        fits = head.out_channels == classes
        fresh = nn.Conv2d(head.in_channels, classes, head.kernel_size, bias=bias)  # type: ignore[arg-type]
    if not fits:
        network.set_submodule(name, fresh)
    return network
