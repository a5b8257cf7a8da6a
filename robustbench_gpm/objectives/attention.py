"""Attention that can be differentiated twice."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any
from weakref import WeakSet

from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from ..core import UserError

SAID = "attention runs by the math kernel: the flash kernel has no second derivative"
_watched: WeakSet[nn.Module] = WeakSet()  # models whose first passes are, or have been, looked at


@contextmanager
def double_backward_attention(model: nn.Module) -> Iterator[None]:
    """Let `model`'s attention (scaled_dot_product_attention) be differentiated twice.

    torch's flash and memory-efficient kernels have a first derivative and no second one; inside,
    the math kernel takes their place, which needs memory for every pair of tokens. It belongs round
    the forward pass and round both backward passes, since a model that checkpoints its activations
    runs forward again there. Passes that need one derivative are better left outside.

    The first time that a model is seen to attend, a log message says so. Raises UserError where the
    model chooses another kernel by itself.
    """
    watch = nullcontext() if model in _watched else _Watch()
    _watched.add(model)
    try:
        with sdpa_kernel(SDPBackend.MATH), watch:
            yield
    except RuntimeError as error:
        if "_scaled_dot_product" not in str(error):
            raise
        raise UserError(
            "the model chooses an attention kernel that has no second derivative, which gradient "
            "penalties need: take the sdpa_kernel out of its code"
        ) from error


class _Watch(TorchFunctionMode):
    """Says it when attention runs. Watching takes time at every operation: one pass is enough."""

    def __init__(self) -> None:
        super().__init__()
        self.silent = False

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if not self.silent and _attends(func, given):
            self.silent = True
            logging.getLogger(__name__).warning(SAID)
        return func(*args, **given)


def _attends(func: Callable[..., Any], given: Mapping[str, Any]) -> bool:
    name = getattr(func, "__name__", "")
    # nn.MultiheadAttention is seen as a whole; asked for its weights, it takes no kernel.
    whole = name == "multi_head_attention_forward" and not given.get("need_weights", True)
    return whole or name == "scaled_dot_product_attention"
