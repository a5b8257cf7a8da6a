"""Which models are evaluated, and on which images: checkpoints, or a model by its name."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import checkpoint
from .config import EvaluateConfig
from .core import UserError, pick_device
from .datasets import AUGMENTATIONS, DATASETS, LoadOptions, Split, load_split, prepared
from .evaluator import Subject
from .fields import plain
from .files import safe_name
from .models import ModelOptions, build_model, check_name, load_weights
from .objectives import PENALTIES
from .tasks import TASKS

# What does not change what is measured, and may differ between a run and the one that goes on.
INCIDENTAL = {"out", "shard", "batch_size", "cache_dir", "checkpoints_dir", "data_path"}


def subjects_of(config: EvaluateConfig, values: Mapping[str, Any]) -> list[Subject]:
    """Every model to evaluate, with its data, before any long work."""
    if config.task is not None:
        TASKS[config.task]
    if config.model is not None:
        return [_bare_model(config, config.model)]
    paths = [Path(path) for path in config.checkpoint] or [_newest(config, values)]
    subjects = [_from_checkpoint(path, config) for path in paths]
    names = [subject.name for subject in subjects]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two checkpoints are called {name}: rename one of the folders")
    return subjects


def _newest(config: EvaluateConfig, values: Mapping[str, Any]) -> Path:
    weights = [penalty.lamb_flag() for penalty in PENALTIES.values()]
    wanted = {"data_name": config.data_name, "model_name": config.model_name}
    wanted |= {name: values[name] for name in weights}
    path = checkpoint.find(
        config.checkpoints_dir,
        {name: v for name, v in wanted.items() if v is not None},
        task=config.task,
    )
    print(f"checkpoint: {path} (the newest that fits; --checkpoint names another)")
    return path


def _from_checkpoint(path: Path, config: EvaluateConfig) -> Subject:
    loaded = checkpoint.load(path)
    card = loaded.card
    data_name = config.data_name or card.data_name
    _check_task(card.task, data_name, config.task, loaded.name)
    split = _split(config, data_name, card.configuration)
    _check_fit(split, checkpoint.options_of(card), loaded.name)
    if split.classes != card.classes:
        raise UserError(
            f"{loaded.name} was trained on {len(card.classes)} classes "
            f"({', '.join(card.classes[:3])}, ...) and the data has {len(split.classes)} "
            f"({', '.join(split.classes[:3])}, ...): evaluate it on the data set it was trained on"
        )
    facts = {"checkpoint": str(path), "objective": card.objective}
    return Subject(
        loaded.name,
        loaded.model,
        split,
        TASKS[card.task](),
        _provenance(config, checkpoint.fingerprint(loaded.model), split, facts),
    )


def _bare_model(config: EvaluateConfig, name: str) -> Subject:
    """A model without a checkpoint card, on the data set that --data_name names."""
    data_name = config.data_name or ""
    spec = DATASETS[data_name]
    _check_task(spec.task, data_name, config.task, name)
    check_name(name, spec.task)
    split = _split(config, data_name, {})
    channels = split.images.shape[1]
    options = ModelOptions(
        classes=len(split.classes),
        channels=channels,
        image_size=split.images.shape[-1],
        mean=config.mean * split.frames or (0.0,) * channels,
        std=config.std * split.frames or (1.0,) * channels,
        pretrained=config.weights is None and name.startswith(("timm:", "torchvision:")),
        activation=config.activation,
        task=spec.task,
        image_height=split.height_if_not_square,
        frames=split.frames,
    )
    model = build_model(name, options)
    if config.weights is not None:
        load_weights(model, config.weights, classes=options.classes)
    facts = {"model": name}
    label = safe_name(name.rpartition("/")[2])
    return Subject(
        label,
        model.eval(),
        split,
        TASKS[spec.task](),
        _provenance(config, checkpoint.fingerprint(model), split, facts),
    )


def _split(config: EvaluateConfig, data_name: str, trained: Mapping[str, Any]) -> Split:
    """The images to evaluate on, brought to the form the model was validated on."""
    options = LoadOptions(
        data_path=config.data_path or _trained_path(trained),
        cache_dir=config.cache_dir.expanduser(),
        image_size=config.image_size or trained.get("image_size"),
        frames=config.frames or trained.get("frames"),
    )
    split = load_split(data_name, config.split, options)
    if config.limit is not None:
        split = split.limit(config.limit)
    augmentation = AUGMENTATIONS[trained.get("augment", "none")](*split.images.shape[-2:])
    return prepared(split, augmentation)


def _check_task(task: str, data_name: str, asked: str | None, name: str) -> None:
    """Raise UserError where a model's task is not that of its data, or not the one asked for."""
    if DATASETS[data_name].task != task:
        raise UserError(
            f"{name} is for {task}, and --data_name {data_name} for {DATASETS[data_name].task}: "
            f"choose the data set it was trained on"
        )
    if asked not in (None, task):
        raise UserError(f"{name} is for {task}, not for {asked}: leave --task out")


def _trained_path(trained: Mapping[str, Any]) -> Path | None:
    """Where the data lay in training, if that was said."""
    path = trained.get("data_path")
    return Path(path) if path else None


def _check_fit(split: Split, options: ModelOptions, name: str) -> None:
    channels, height, width = split.images.shape[1:]
    if (channels, height, width) != (options.channels, *options.size):
        raise UserError(
            f"{name} takes images of {options.channels} channels and {_by(*options.size)} pixels, "
            f"and the data has {channels} channels and {_by(height, width)} pixels: choose the "
            "data set it was trained on"
        )


def _by(height: int, width: int) -> str:
    """One number where both are the same."""
    return str(width) if height == width else f"{height}x{width}"


def _provenance(
    config: EvaluateConfig, weights_hash: str, split: Split, facts: Mapping[str, object]
) -> dict[str, object]:
    given = plain(dataclasses.asdict(config))
    configuration = {name: value for name, value in given.items() if name not in INCIDENTAL}
    text = json.dumps(configuration, sort_keys=True)
    return {
        "weights_hash": weights_hash,
        "data_hash": split.fingerprint(),
        "configuration_hash": hashlib.sha256(text.encode()).hexdigest()[:16],
        "configuration": configuration,
        "versions": checkpoint.versions(),
        "seed": config.seed,
        "device": str(pick_device(config.device)),
        **facts,
    }
