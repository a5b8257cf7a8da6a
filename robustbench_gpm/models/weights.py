"""Weights from a file into a model, or one sentence about why they do not fit."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..core import UserError
from .checks import in_short, require_file
from .normalise import Normalised

State = dict[str, Tensor]

SAFE = ".safetensors"
PYTORCH = (".pt", ".pth", ".bin", ".tar")
CONTAINERS = ("state_dict", "model", "net")
WRAPPERS = ("module.", "_orig_mod.")  # DataParallel, torch.compile
INSIDE = "network."
STATISTICS = ("mean", "std")


def load_weights(model: nn.Module, path: Path, *, classes: int) -> None:
    """Put the weights in `path` into `model`, which was built for `classes` classes.

    Takes .safetensors, and .pt, .pth, .bin or .tar files of plain tensors, bare or under
    'state_dict', 'model' or 'net', with or without the prefixes that wrappers leave. Weights of a
    bare network fit a `Normalised` one, which keeps its own statistics; weights of a whole
    `Normalised` model bring theirs. Nothing is ever unpickled.

    Raises UserError, and leaves the model as it was, where the file cannot be read or its weights
    do not fit or are not finite.
    """
    state = _fitted(_read(path), model, path)
    _check_shapes(state, model.state_dict(), path, classes)
    for key, tensor in state.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise UserError(f"'{path}' holds NaN or infinite weights in '{key}': train it again")
    model.load_state_dict(state)


def _read(path: Path) -> State:
    require_file(path, "weights")
    if path.suffix not in (SAFE, *PYTORCH):
        raise UserError(
            f"'{path}' is no known kind of weights file: it must end in "
            f"{', '.join((SAFE, *PYTORCH))}"
        )
    if path.suffix == SAFE:
        try:
            held: Any = load_file(path)
        except (SafetensorError, OSError) as error:
            raise _unreadable(path, error) from error
    else:
        held = _read_pytorch(path)
    return _plain_state(held, path)


def _read_pytorch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # What torch says goes on to recommend running it: it is not passed on.
        raise UserError(
            f"'{path}' is damaged or holds pickled code, which is never run: save "
            "model.state_dict() alone, best as .safetensors"
        ) from error
    except Exception as error:  # a damaged file raises nearly anything
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(
        f"'{path}' is truncated, or is not the weights file its name says: copy it again "
        f"({in_short(error)})"
    )


def _plain_state(held: Any, path: Path) -> State:
    """The tensors by name, out of their container and without the prefixes of wrappers."""
    for key in CONTAINERS:
        if isinstance(held, Mapping) and isinstance(held.get(key), Mapping):
            held = held[key]
            break
    tensors = isinstance(held, Mapping) and all(isinstance(v, Tensor) for v in held.values())
    if not tensors or not held:
        raise UserError(
            f"'{path}' holds no weights by name: save model.state_dict(), bare or under "
            f"{', '.join(repr(key) for key in CONTAINERS)}"
        )
    state: State = dict(held)
    for prefix in WRAPPERS:
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    return state


def _fitted(state: State, model: nn.Module, path: Path) -> State:
    """`state` under the names of `model`, whichever of the two is wrapped in `Normalised`."""
    wanted = model.state_dict()
    candidates = [state]
    if isinstance(model, Normalised):
        own = {name: wanted[name] for name in STATISTICS}
        candidates.append({INSIDE + key: tensor for key, tensor in state.items()} | own)
    elif all(name in state for name in STATISTICS):
        bare = {k.removeprefix(INSIDE): v for k, v in state.items() if k.startswith(INSIDE)}
        plain = not bool(state["mean"].any()) and bool((state["std"] == 1).all())
        if bare.keys() == wanted.keys() and not plain:
            raise UserError(
                f"'{path}' was trained with a normalisation that this model lacks: build the model "
                "with the mean and std it was trained with"
            )
        candidates.append(bare)
    # Old files lack the counters of batch norm, which no prediction depends on.
    counters = {k: v for k, v in wanted.items() if k.endswith("num_batches_tracked")}
    candidates = [counters | candidate for candidate in candidates]
    best = min(candidates, key=lambda candidate: len(candidate.keys() ^ wanted.keys()))
    missing, extra = sorted(wanted.keys() - best.keys()), sorted(best.keys() - wanted.keys())
    if missing or extra:
        parts = [f"lacks {_few(missing)}"] * bool(missing) + [f"has {_few(extra)}"] * bool(extra)
        raise UserError(
            f"'{path}' does not hold this model's weights: it {' and '.join(parts)}, so check the "
            "model's name"
        )
    return best


def _few(names: list[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown


def _check_shapes(state: State, wanted: Mapping[str, Tensor], path: Path, classes: int) -> None:
    odd = [key for key in wanted if state[key].shape != wanted[key].shape]
    if not odd:
        return
    # A head for other classes differs in its first dimension alone, and so does its bias.
    in_first = all(
        wanted[key].shape[:1] == (classes,)
        and state[key].dim() > 0
        and state[key].shape[1:] == wanted[key].shape[1:]
        for key in odd
    )
    held = {state[key].shape[0] for key in odd} if in_first else set()
    if len(held) == 1:
        raise UserError(
            f"'{path}' holds a model for {held.pop()} classes, and {classes} are asked for: "
            "choose the data set it was trained on"
        )
    shapes = [f"'{k}' {tuple(state[k].shape)} for {tuple(wanted[k].shape)}" for k in odd[:3]]
    more = f" and {len(odd) - 3} more" if len(odd) > 3 else ""
    raise UserError(
        f"'{path}' holds weights of other shapes than the model: {', '.join(shapes)}{more}"
    )
