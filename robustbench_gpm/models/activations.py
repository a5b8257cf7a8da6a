"""Another activation in a model: penalties differentiate twice, and a ReLU is flat the second time.

Rodriguez-Munoz et al. (ECCV 2024, arXiv 2409.20139) find that input-gradient penalties work with
smooth activations and hardly with ReLU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..core import Table, UserError, frozen

SHARPNESS = 10.0

# Softplus is log(1 + exp(10 x)) / 10, at most 0.07 above a ReLU (the Parametric Softplus of Xie et
# al. 2020, arXiv 2006.14536): at torch's own sharpness of 1 it is 0.7 at 0, and layers on layers of
# it drift off to where it is all but linear.
ACTIVATIONS: Table[Callable[[], nn.Module]] = Table(
    "activation",
    {
        "relu": nn.ReLU,
        "gelu": nn.GELU,
        "silu": nn.SiLU,
        "softplus": partial(nn.Softplus, beta=SHARPNESS),
    },
)

# What is swapped. Sigmoid, tanh, their hard forms and softmax are gates and attention, and stay.
_MODULES = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU),
    *(nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Softplus),
)
# Classes of the same kind that are no subclasses: timm's own.
_NAMES = {"GELU", "GELUTanh", "QuickGELU", "Swish", "HardSwish", "Mish", "HardMish", "PReLU"}
_NAMES |= {"SwishMe", "HardSwishMe", "MishMe", "HardMishMe"}
_FUNCTIONS = {"relu", "relu6", "leaky_relu", "prelu", "rrelu", "elu", "celu", "selu"}
_FUNCTIONS |= {"gelu", "silu", "mish", "hardswish", "softplus"}


def with_activation(model: nn.Module, name: str, sample: Tensor | None = None) -> int:
    """Put the activation `name` of ACTIVATIONS where `model` has any; return how many there were.

    Every activation module inside `model` is replaced, in the model itself, by one that works on a
    copy of its input; one that is used in several places counts once, and still is one. Weights
    keep their names, except those of an activation itself (PReLU), which go.

    Only modules can be replaced, and not F.relu(x) or x.relu() in a network's code. On `sample`,
    images (B,C,H,W) in [0,1], the model is therefore run once, in evaluation mode, to see whether
    it calls any other activation so; an activation spelt out as arithmetic, or inside compiled
    code, is not seen. Raises UserError for an unknown name, for a model that has no activation
    modules, and for one that calls other activations as functions; by then its modules may have
    been replaced.
    """
    fresh: dict[nn.Module, nn.Module] = {}
    make = ACTIVATIONS[name]
    for parent in list(model.modules()):
        for key, child in list(parent._modules.items()):
            if child is not None and _is_activation(child):
                setattr(parent, key, fresh.setdefault(child, make().train(child.training)))
                _leave_fast_path(parent)
    if not fresh:
        raise UserError(
            "the model has no activation modules, such as nn.ReLU, that --activation could "
            "replace: give it modules in place of functions, or leave out --activation"
        )
    if sample is not None:
        _check_functions(model, name, sample)
    return len(fresh)


def _is_activation(module: nn.Module) -> bool:
    return isinstance(module, _MODULES) or type(module).__name__ in _NAMES


def _leave_fast_path(parent: nn.Module) -> None:
    # By this note of its first activation, nn.TransformerEncoderLayer takes a kernel in evaluation.
    if isinstance(parent, nn.TransformerEncoderLayer):
        parent.activation_relu_or_gelu = 0


def _check_functions(model: nn.Module, name: str, sample: Tensor) -> None:
    with torch.no_grad(), frozen(model), _Calls() as calls:
        model(sample)
    others = {function: count for function, count in calls.counted.items() if function != name}
    if others:
        told = " and ".join(f"{function} ({n})" for function, n in sorted(others.items()))
        raise UserError(
            f"the model calls activations as functions, {told}, which --activation cannot replace: "
            "put modules, such as nn.ReLU, in its code, or leave out --activation"
        )


class _Calls(TorchFunctionMode):
    """Counts the activations that run, by the names of their functions."""

    def __init__(self) -> None:
        super().__init__()
        self.counted: Counter[str] = Counter()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        function = getattr(func, "__name__", "").rstrip("_")
        if function in _FUNCTIONS:
            self.counted[function] += 1
        return func(*args, **(kwargs or {}))
