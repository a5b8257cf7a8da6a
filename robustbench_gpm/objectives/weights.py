"""An objective's gradient by itself, and once more at weights nearby, all else being the same."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from ..core import Loss
from .base import Objective

K = TypeVar("K")
T = TypeVar("T")
Gradients = dict[Tensor, Tensor]  # of each parameter that has one; or how far each is moved


def two_gradients(
    objective: Objective,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    loss: Loss,
    displace: Callable[[Gradients], Gradients],
) -> tuple[Gradients, Gradients, dict[str, Tensor]]:
    """The gradient g at the weights, that at the weights plus `displace(g)`, and what to log.

    Both are of one function of the weights: the same images, random draws, and buffers to begin
    with. Weights and `.grad` are then as they were, whatever happens, and random state and buffers
    (BatchNorm's statistics among them) as the first pass left them. Logs what the objective logs at
    the weights themselves, and `gradient_norm`, that of g over all parameters. What `displace`
    returns is written to, and so must not be g itself.
    """
    moment = Moment.of(model, x.device)
    here, log = gradient_of(objective, model, x, y, loss)
    with moment.again(), moved(displace(here)):
        there, _ = gradient_of(objective, model, x, y, loss)
    return here, there, {**log, "gradient_norm": global_norm(here)}


def gradient_of(
    objective: Objective, model: nn.Module, x: Tensor, y: Tensor, loss: Loss
) -> tuple[Gradients, dict[str, Tensor]]:
    """What `objective.backward` adds to `.grad`, and its log; `.grad` is left as it was."""
    return filled(model.parameters(), lambda: objective.backward(model, x, y, loss))


def filled(leaves: Iterable[Tensor], fill: Callable[[], T]) -> tuple[Gradients, T]:
    """What `fill` adds to the `.grad` of `leaves`, and what it returns; `.grad` is as it was.

    Each gradient has memory of its own, and may be written to. A backward pass into an empty
    `.grad` makes few copies, and one too few where it leaves two leaves with views of one gradient.
    """
    before = [(leaf, leaf.grad) for leaf in leaves]
    try:
        for leaf, _ in before:
            leaf.grad = None
        returned = fill()
        found = [(leaf, leaf.grad.detach()) for leaf, _ in before if leaf.grad is not None]
    finally:
        for leaf, gradient in before:
            leaf.grad = gradient
    gradients: Gradients = {}
    taken: set[int] = set()
    for leaf, gradient in found:
        memory = gradient.untyped_storage().data_ptr()
        gradients[leaf] = gradient.clone() if memory in taken else gradient
        taken.add(memory)
    return gradients, returned


@contextmanager
def moved(displacements: Gradients) -> Iterator[None]:
    """The weights moved, which uses the displacements up.

    The parameters show other memory meanwhile; their own is not written to, and so comes back
    unrounded.
    """
    before = {p: p.data for p in displacements}
    try:
        for p, displacement in displacements.items():
            p.data = _sum(p.data, displacement)
        yield
    finally:
        for p, weights in before.items():
            p.data = weights


def _sum(weights: Tensor, displacement: Tensor) -> Tensor:
    """Laid out as the weights are, which a compiled model looks at; in spare memory if it can."""
    if displacement.stride() == weights.stride():
        return displacement.add_(weights)
    return weights.clone().add_(displacement)


def global_norm(gradients: Gradients) -> Tensor:
    """The l2 norm over all parameters together, a scalar."""
    return get_total_norm(list(gradients.values()))


def ratio(radius: float, norm: Tensor) -> Tensor:
    """The factor radius / norm, and 0 where the norm is 0: without a direction nothing moves."""
    return torch.where(norm > 0, radius / norm, torch.zeros_like(norm))


def accumulate(total: dict[K, Tensor], part: dict[K, Tensor], share: float) -> None:
    """Add share * part to `total`, key by key; a share of 1 or 0 costs no rounding.

    `part` is used up: as fresh memory costs more than the arithmetic does, none is taken.
    """
    if share == 0:
        return
    for key, value in part.items():
        term = value if share == 1 else value.mul_(share)
        total[key] = total[key].add_(term) if key in total else term


def add_to_grad(gradients: Gradients) -> None:
    """Add to `.grad`, as a backward pass would."""
    for p, gradient in gradients.items():
        p.grad = gradient if p.grad is None else p.grad.add_(gradient)


@dataclass(frozen=True)
class Moment:
    """What a pass draws on and changes, beside weights: random state, and copies of the buffers."""

    draws: RandomState
    buffers: list[tuple[nn.Module, str, Tensor]]

    @classmethod
    def of(cls, model: nn.Module, device: torch.device) -> Moment:
        """As things stand now; `device` is where the images are."""
        return cls(
            RandomState.of(device),
            [
                (module, name, buffer.clone())
                for module in model.modules()
                for name, buffer in module.named_buffers(recurse=False)
            ],
        )

    @contextmanager
    def again(self) -> Iterator[None]:
        """Let something happen as from this moment, for once; afterwards all is as it is now.

        The modules work on the copies meanwhile, so that nothing writes to their own buffers.
        """
        draws = RandomState.of(self.draws.device)
        own = [(module, name, getattr(module, name)) for module, name, _ in self.buffers]
        try:
            self.draws.restore()
            _lend(self.buffers)
            yield
        finally:
            _lend(own)
            draws.restore()


def _lend(buffers: list[tuple[nn.Module, str, Tensor]]) -> None:
    for module, name, buffer in buffers:
        setattr(module, name, buffer)


@dataclass(frozen=True)
class RandomState:
    """Where the global generators stand: those that `core.seed_everything` seeds."""

    device: torch.device
    torch_cpu: Tensor
    torch_cuda: Tensor | None
    numpy: Any
    python: Any

    @classmethod
    def of(cls, device: torch.device) -> RandomState:
        """As they stand now; of the GPUs, only `device`."""
        return cls(
            device,
            torch.get_rng_state(),
            torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
            np.random.get_state(),
            random.getstate(),
        )

    def restore(self) -> None:
        """Set the generators back."""
        torch.set_rng_state(self.torch_cpu)
        if self.torch_cuda is not None:
            torch.cuda.set_rng_state(self.torch_cuda, self.device)
        np.random.set_state(self.numpy)
        random.setstate(self.python)
