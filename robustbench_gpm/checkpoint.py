"""Checkpoints: a folder with safetensors weights, a JSON card that says what they are, and what a
resumed training needs.

    best.safetensors   the weights of the epoch with the best validation accuracy
    last.safetensors   the weights of the last epoch
    card.json          model, data, classes, objective, configuration, history, versions
    resume.pt          everything the trainer needs to go on after the last epoch
"""

from __future__ import annotations

import hashlib
import json
import pickle
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from . import __version__
from .core import UserError
from .files import atomically, write_text
from .models import ModelOptions, build_model, load_weights

BEST, LAST, CARD, RESUME = "best.safetensors", "last.safetensors", "card.json", "resume.pt"


@dataclass(frozen=True)
class Card:
    """What a checkpoint is. `history` holds one entry an epoch; accuracies are fractions."""

    model_name: str
    model_options: dict[str, Any]
    task: str
    data_name: str
    classes: tuple[str, ...]
    objective: str
    configuration: dict[str, Any]
    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0  # counted from 1
    finished: bool = False
    saved_at: str = ""
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory: the model has its weights, and is in evaluation mode."""

    name: str
    model: nn.Module
    card: Card


def versions() -> dict[str, str]:
    """What computed a result: the packages whose versions can change it."""
    return {
        "robustbench_gpm": __version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "python": platform.python_version(),
    }


def now() -> str:
    """The time in UTC, to the microsecond, as ISO 8601: it sorts as text."""
    return datetime.now(timezone.utc).isoformat(timespec="microseconds")


def fingerprint(model: nn.Module) -> str:
    """A hash of the model's parameters and buffers: 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def save_weights(model: nn.Module, path: Path) -> None:
    """Write the model's parameters and buffers to a safetensors file, atomically."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    with atomically(path) as temporary:
        save_file(tensors, temporary)


def write_card(card: Card, folder: Path) -> None:
    """Write `folder`/card.json, atomically."""
    write_text(folder / CARD, json.dumps(asdict(card), indent=2) + "\n")


def read_card(folder: Path) -> Card:
    """Read `folder`/card.json. Raises UserError if it is missing, truncated or of another kind."""
    path = folder / CARD
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Card(**{**content, "classes": tuple(content["classes"])})
    except FileNotFoundError:
        raise UserError(f"there is no checkpoint in {folder}: it has no {CARD}") from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"the checkpoint card {path} cannot be read ({error}): train again or restore the file"
        ) from None


def load(path: Path) -> Checkpoint:
    """The model of a checkpoint folder (its best weights) or of one of the folder's weights files.

    Raises UserError if anything is missing, truncated or does not fit together.
    """
    folder, weights = (path.parent, path) if path.is_file() else (path, path / BEST)
    if not path.exists():
        raise UserError(f"there is no checkpoint at {path}: name a folder that main.py has written")
    card = read_card(folder)
    model = build_model(card.model_name, options_of(card))
    load_weights(model, weights, classes=len(card.classes))
    return Checkpoint(folder.resolve().name, model.eval(), card)


def options_of(card: Card) -> ModelOptions:
    """How to build the card's model. Raises UserError if the card's own numbers disagree."""
    options = dict(card.model_options)
    if options["classes"] != len(card.classes):
        raise UserError(
            f"the checkpoint's card names {len(card.classes)} classes but its model has "
            f"{options['classes']}: the card was changed by hand; train again or restore it"
        )
    options["mean"], options["std"] = tuple(options["mean"]), tuple(options["std"])
    return ModelOptions(**{**options, "pretrained": False})


def find(folder: Path, wanted: Mapping[str, Any], task: str | None = None) -> Path:
    """The newest checkpoint below `folder` whose configuration agrees with `wanted`.

    With `task`, only among those for that task.

    Raises UserError if there is none.
    """
    found = []
    for card_path in folder.glob(f"*/{CARD}"):
        card = read_card(card_path.parent)
        if task not in (None, card.task):
            continue
        if (card_path.parent / BEST).exists() and all(
            card.configuration.get(key) == value for key, value in wanted.items()
        ):
            found.append((card.saved_at, card_path.parent))
    if not found:
        asked = {**({"task": task} if task else {}), **wanted}
        which = " ".join(f"--{key} {value}" for key, value in asked.items())
        raise UserError(
            f"there is no checkpoint in {folder}{' for ' + which if which else ''}: "
            f"train one with `main.py{' ' + which if which else ''}` or name one with --checkpoint"
        )
    return max(found)[1]


def save_resume(state: dict[str, Any], folder: Path) -> None:
    """Write what a resumed training needs, atomically; only tensors and plain values."""
    with atomically(folder / RESUME) as temporary:
        torch.save(state, temporary)


def load_resume(folder: Path) -> dict[str, Any]:
    """Read it back, never running code from the file. Raises UserError if that can't be done."""
    path = folder / RESUME
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"nothing to resume: {path} is missing") from None
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError):
        raise UserError(f"{path} is truncated or damaged: start again with --overwrite") from None
    return state
