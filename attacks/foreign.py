"""What the adapters of other libraries' attacks share: a counted model, seeds, clean results."""

from __future__ import annotations

import difflib
import random
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..core import Samples, UserError

Option = bool | int | float | str
Options = tuple[tuple[str, Option], ...]
Run = Callable[
    [nn.Module, Tensor, Tensor, int, int], Tensor
]  # model, x, y, classes, seed -> images

# What a library raises over a model or images that it is not made for. (Other RuntimeErrors are the
# model's own, out of memory among them.)
UNFIT = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NotImplementedError,
    TypeError,
    ValueError,
)


class Counted(nn.Module):
    """The model as another library sees it: alone, in float32, each pass counted.

    The model is no submodule and lends no parameter, so that nothing done to this module (modes,
    devices, gradients set to zero) reaches it.
    """

    def __init__(self, model: nn.Module, like: Tensor) -> None:
        """`like`: images whose device and type the model takes."""
        super().__init__()
        self.place = nn.Parameter(torch.empty(0, device=like.device), requires_grad=False)
        self._hidden = (model,)  # in a tuple, where torch does not look for modules
        self._type = like.dtype
        self.forwards = self.backwards = 0
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self._hidden[0](images.to(self._type))
        self.forwards += len(logits)
        if logits.requires_grad:
            logits.register_hook(self._count)  # type: ignore[no-untyped-call]
        return logits.to(images.dtype)

    def _count(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)

    def charge(self, samples: Samples) -> None:
        """Book all passes, spread evenly: whose they were, only the library knows."""
        for kind, total in (("forwards", self.forwards), ("backwards", self.backwards)):
            share, rest = divmod(total, len(samples))
            samples.book(**{kind: share})
            samples.select(torch.arange(rest)).book(**{kind: 1})
        self.forwards = self.backwards = 0


@contextmanager
def seeded(samples: Samples) -> Iterator[int]:
    """The global random states of python, numpy and torch, seeded by who the first sample is.

    They are put back afterwards. Gives a seed for libraries that ask for one.
    """
    seed = zlib.crc32(f"{samples.seed}/{int(samples.index[0])}".encode())
    python, numpy = random.getstate(), np.random.get_state()
    started = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = range(torch.cuda.device_count()) if started else ()
    with torch.random.fork_rng(list(devices)):
        try:
            random.seed(seed)
            np.random.seed(seed)
            torch.default_generator.manual_seed(seed)
            if devices:
                torch.cuda.manual_seed_all(seed)
            yield seed
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def attacked(
    who: str, run: Run, model: nn.Module, x: Tensor, y: Tensor, samples: Samples
) -> Tensor:
    """What `run` makes of the images that nothing fools yet; the others stay as they are.

    `run` gets the counted model, the images in float32, their labels, how many classes there are
    and a seed. Values that it has not changed are exactly those of x, values that are not numbers
    too. Raises UserError where the library cannot attack these images or this model.
    """
    found = x.clone()
    with torch.no_grad():
        logits = model(x)
    samples.book(forwards=1)
    rows = torch.nonzero(logits.argmax(1) == y).squeeze(1)
    if len(rows) == 0:
        return found
    images, labels, part = x[rows], y[rows], samples.select(rows)
    plain, counted = images.float(), Counted(model, x)
    with seeded(part) as seed:
        try:
            raw = run(counted, plain.clone(), labels.clone(), logits.shape[1], seed)
        except UNFIT as error:
            reason = f"{type(error).__name__}: {_in_short(error)}"
            raise UserError(f"{who} fails on this model or these images ({reason})") from error
        finally:
            counted.charge(part)
    raw = raw.detach().to(plain)
    same = (raw == plain) | ~raw.isfinite()
    found[rows] = torch.where(same, images, raw.to(x.dtype)).clamp(0, 1)
    return found


def only_fooling(model: nn.Module, x: Tensor, y: Tensor, found: Tensor, samples: Samples) -> Tensor:
    """The images found that fool, (B,C,H,W), and x for the others: one forward pass."""
    with torch.no_grad():
        fooled = model(found).argmax(1) != y
    samples.book(forwards=1)
    return torch.where(fooled.view(-1, *[1] * (x.dim() - 1)), found, x)


def pick(library: str, name: str, served: Iterable[str], refused: dict[str, str]) -> None:
    """Raise UserError, in a sentence, for a name that is unknown or refused."""
    if name in refused:
        raise UserError(f"{library}:{name} cannot be used here: {refused[name]}")
    if name not in (names := list(served)):
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        lower = [known for known in names if known.lower() == name.lower()]
        guess = ", ".join(f"'{library}:{one}'" for one in lower or near)
        advice = f"did you mean {guess}?" if guess else f"choose from {', '.join(names)}"
        raise UserError(f"{library} has no attack '{name}': {advice}")


def check_norm(who: str, norm: str, served: Iterable[str]) -> None:
    """Raise UserError for a norm that an attack does not serve."""
    if norm not in (norms := list(served)):
        raise UserError(f"{who}: norm must be one of {', '.join(norms)}, not '{norm}'")


def built(who: str, build: Callable[..., Any], *given: object, **keywords: object) -> Any:
    """What `build` makes; UserError where it does not take these options."""
    try:
        return build(*given, **keywords)
    except (AssertionError, NameError, TypeError, ValueError) as error:
        raise UserError(f"{who} cannot be made with these options: {_in_short(error)}") from error


def _in_short(error: BaseException) -> str:
    """The first line of what an exception says."""
    return str(error).strip().partition("\n")[0][:200]
