"""The few types and helpers that every part shares."""

from __future__ import annotations

import difflib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

T = TypeVar("T")


class UserError(Exception):
    """Something the user can mend; the command line prints it as one sentence and exits with 2."""


class Table(Mapping[str, T]):
    """What can be asked for by name: a mapping that answers a wrong name with the right ones."""

    def __init__(self, kind: str, entries: Mapping[str, T], also: str = "") -> None:
        """`kind` names an entry ("attack"); `also` tells of forms beyond the table."""
        self._kind, self._entries, self._also = kind, dict(entries), also

    def __getitem__(self, name: str) -> T:
        try:
            return self._entries[name]
        except KeyError:
            raise UserError(self._advice(name)) from None

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def _advice(self, name: str) -> str:
        near = difflib.get_close_matches(name, self._entries, n=1)
        guess = f"did you mean '{near[0]}'? " if near else ""
        forms = f" or {self._also}" if self._also else ""
        return f"unknown {self._kind} '{name}': {guess}choose from {', '.join(self)}{forms}"


class Loss(Protocol):
    """What an attack raises and training lowers: one number a sample."""

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Losses, shape (B,), of `model` on images x (B,C,H,W) in [0,1] with labels y."""
        ...

    def judged(self, model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The same losses and, from the same forward pass, which samples are fooled: (B,) bool."""
        ...


@runtime_checkable
class Scheduled(Protocol):
    """What a `Loss` has besides where it changes in the course of an attack."""

    def at(self, step: int, steps: int) -> Loss:
        """The loss that step 1..steps raises."""
        ...


def loss_at(loss: Loss, step: int, steps: int) -> Loss:
    """What step 1..steps of an attack is to raise: the loss itself, unless it is `Scheduled`."""
    return loss.at(step, steps) if isinstance(loss, Scheduled) else loss


def ends(loss: Loss) -> bool:
    """Whether an attack can be over early: no, where a loss takes nobody for fooled and says so."""
    return bool(getattr(loss, "ends", True))


class Samples:
    """Who is in a batch: each sample's own random stream, and the book of what each has cost.

    A stream is keyed by the seed and the sample's index alone, so that what a sample draws does not
    depend on its batch, its place in it, or the samples before it.
    """

    def __init__(self, index: Sequence[int] | Tensor, seed: int = 0) -> None:
        """`index` (B,): the samples' places in the data set, each at least 0."""
        self.index = torch.as_tensor(index, dtype=torch.int64).cpu()
        self.seed = seed
        self._streams: list[np.random.Generator] | None = None
        self._book = torch.zeros(2, len(self.index), dtype=torch.int64)
        self._rows = torch.arange(len(self.index))
        self._credit: list[str | None] = [None] * len(self.index)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def forwards(self) -> Tensor:
        """Forward passes spent on each sample, shape (B,)."""
        return self._book[0, self._rows]

    @property
    def backwards(self) -> Tensor:
        """Backward passes (to the input) spent on each sample, shape (B,)."""
        return self._book[1, self._rows]

    def book(self, forwards: int = 0, backwards: int = 0) -> None:
        """Charge every sample of this batch."""
        self._book[0, self._rows] += forwards
        self._book[1, self._rows] += backwards

    @property
    def broken_by(self) -> list[str | None]:
        """Which part of an attack of several a sample's perturbation is the work of, if it says."""
        return [self._credit[int(row)] for row in self._rows]

    def credit(self, name: str) -> None:
        """Say that the perturbation of every sample of this batch is the work of that part."""
        for row in self._rows.tolist():
            self._credit[row] = name

    def select(self, chosen: Tensor) -> Samples:
        """The samples that `chosen` (a mask or positions) picks, on the same streams and book."""
        part = object.__new__(Samples)
        positions = torch.arange(len(self))[chosen.cpu()]
        part.index, part.seed = self.index[positions], self.seed
        streams = self._started()
        part._streams = [streams[int(i)] for i in positions]
        part._book, part._rows = self._book, self._rows[positions]
        part._credit = self._credit
        return part

    def uniform(self, like: Tensor) -> Tensor:
        """Uniform noise in [-1,1) with the shape, device and type of `like` (B, ...)."""
        return self._draw(like, lambda stream, shape: stream.uniform(-1.0, 1.0, shape))

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal noise with the shape, device and type of `like` (B, ...)."""
        return self._draw(like, lambda stream, shape: stream.standard_normal(shape))

    def _started(self) -> list[np.random.Generator]:
        if self._streams is None:
            seed = self.seed % 2**64
            self._streams = [
                np.random.Generator(np.random.Philox(key=np.array([seed, i], dtype=np.uint64)))
                for i in self.index.tolist()
            ]
        return self._streams

    def _draw(
        self, like: Tensor, draw: Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
    ) -> Tensor:
        shape = tuple(like.shape[1:])
        drawn = [draw(stream, shape) for stream in self._started()]
        noise = np.stack(drawn) if drawn else np.empty((0, *shape))
        return torch.from_numpy(noise).to(device=like.device, dtype=like.dtype)


@contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """Evaluation mode without weight gradients; every flag is put back, whatever happens."""
    modes = [(module, module.training) for module in model.modules()]
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.eval()
        for parameter, _ in wanted:
            parameter.requires_grad_(False)
        yield model
    finally:
        for module, training in modes:
            module.training = training
        for parameter, flag in wanted:
            parameter.requires_grad_(flag)


def pick_device(name: str) -> torch.device:
    """`auto` takes the GPU where there is one. Raises UserError if the device isn't there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError("no GPU is available to torch here: use --device cpu or --device auto")
    if name.partition(":")[0] not in ("cpu", "cuda"):
        raise UserError(f"unknown device '{name}': choose auto, cpu or cuda")
    return torch.device(name)


def seed_everything(seed: int) -> None:
    """Seed python, numpy and torch (weights, shuffling, augmentation)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
