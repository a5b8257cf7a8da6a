"""A model as torch's compiler runs it, and which objectives can train by it."""

from __future__ import annotations

import os
from itertools import chain

import torch
from torch import Tensor, nn

from .core import UserError
from .objectives import Objective, Penalised
from .objectives.edges import EdgeRegularised

# What a model is compiled anew for, at most: training or evaluation, with or without gradients of
# the images and of the weights, and each for one size of batch, for any, and for one image. From
# then on what is new runs as it is written.
KINDS = 32


def compiled(model: nn.Module) -> nn.Module:
    """The same model, with the same parameters and buffers, for the steps of training.

    Losses and first derivatives are `model`'s up to rounding, and so is its mode (training or
    evaluation); names in its `state_dict` are not, so that `model` itself is to be saved. What it
    is first called with, and what is later new about a call, takes seconds to minutes to compile.

    Raises UserError where nothing can be compiled, which a sum of two numbers finds out at once.
    """
    torch._dynamo.config.recompile_limit = max(KINDS, torch._dynamo.config.recompile_limit)
    # Or else backward passes write over what an attack passes through a second time (DeepFool).
    torch._functorch.config.donated_buffer = False
    device = next((t.device for t in chain(model.parameters(), model.buffers())), None)
    _try_compiler(device or torch.device("cpu"))
    result = torch.compile(model)
    assert isinstance(result, nn.Module)
    return result


def first_order(objective: Objective) -> bool:
    """Whether `objective` never takes a second derivative, which the compiler knows none of."""
    if isinstance(objective, Penalised):
        return not objective.penalties or objective.mode.penalty_mode == "finite_difference"
    if isinstance(objective, EdgeRegularised):
        return False
    inner: Objective | None = getattr(objective, "inner", None)
    return inner is None or first_order(inner)


def _try_compiler(device: torch.device) -> None:
    """Raise UserError if the compiler does not do with something that it cannot have seen."""
    number = int.from_bytes(os.urandom(3), "big") / 2**24

    def add(x: Tensor) -> Tensor:
        return x + number

    try:
        torch.compile(add, dynamic=False)(torch.zeros(2, device=device))
    except Exception as error:  # compilers can be amiss in many ways
        lines = str(error).strip().splitlines()
        why = lines[0] if lines else type(error).__name__
        raise UserError(
            f"nothing can be compiled here ({why}): install a C++ compiler such as g++, or train "
            "without --compile"
        ) from error
