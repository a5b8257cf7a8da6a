"""`main.py`, `robustbench-gpm train`: flags, data, model, objective, trainer, checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import checkpoint
from .checkpoint import Card
from .compiled import first_order
from .config import TrainConfig
from .core import UserError, pick_device, seed_everything
from .datasets import (
    AUGMENTATIONS,
    DATASETS,
    EMBEDDED,
    DataSpec,
    LoadOptions,
    Split,
    TrainLoader,
    load_split,
    prepared,
)
from .fields import plain
from .files import free_folder, safe_name, try_folder
from .flags import Parser, build_parser, parse, peek
from .models import ModelOptions, build_model, check_name
from .tasks import TASKS
from .trainer import Plan, Trainer
from .training_options import FLAGS, TrainingOptions

# What may differ between an interrupted training and its resumption: it doesn't change the result.
INCIDENTAL = {"resume", "overwrite", "device", "workers", "cache_dir", "checkpoints_dir", "out"}


def run(arguments: Sequence[str], prog: str) -> None:
    """Train as `arguments` ask, and print where the checkpoint is."""
    spec = _spec(arguments)
    parser = train_parser(spec, prog)
    values = parse(parser, arguments)
    options = TrainingOptions.of(values)
    options.check_task(spec.task)
    config = options.config
    AUGMENTATIONS[config.augment]  # names are looked up before anything is loaded
    check_name(config.model_name, spec.task)
    device = pick_device(config.device)
    folder = _folder(config, options.label)
    seed_everything(config.seed)
    train, validation = _splits(config)
    model_options = _model_options(config, spec, train)
    loader, validation = _prepared(options, train, validation)
    objective = options.objective(len(loader))
    if config.compile and not first_order(objective):
        raise UserError(
            "--compile knows no second derivatives, which this objective takes: leave it out, or "
            "take penalties by --penalty_mode finite_difference"
        )
    card = Card(
        model_name=config.model_name,
        model_options=dataclasses.asdict(model_options),
        task=spec.task,
        data_name=config.data_name,
        classes=train.classes,
        objective=repr(objective),
        configuration=plain(values),
        versions=checkpoint.versions(),
    )
    trainer = Trainer(
        build_model(config.model_name, model_options),
        objective,
        TASKS[spec.task](),
        Plan(options.steps, config.precision, config.seed, options.replays, config.compile),
        device,
        folder,
        card,
        show_progress=True,
    )
    if config.resume:
        _check_same(card, checkpoint.read_card(folder), plain(parser.get_defaults().as_dict()))
        trainer.restore(checkpoint.load_resume(folder))
    card = trainer.run(loader, validation)
    best = card.history[card.best_epoch - 1][trainer.task.validated]
    print(f"best validation {trainer.task.metric} {best:.2%}, in epoch {card.best_epoch}")
    print(f"checkpoint: {folder}")


def _spec(arguments: Sequence[str]) -> DataSpec:
    """The data set that is asked for, by its name or by that of its task."""
    task = peek(arguments, "task", "")
    if task:
        TASKS[task]
    name = peek(arguments, "data_name", EMBEDDED.get(task or "classification", ""))
    fitting = ", ".join(name for name, each in DATASETS.items() if task in ("", each.task))
    if not name:
        raise UserError(f"--task {task} needs a data set: choose one by --data_name from {fitting}")
    spec = DATASETS[name]
    if task not in ("", spec.task):
        raise UserError(
            f"--data_name {spec.name} is for {spec.task}, not for {task}: choose from {fitting}"
        )
    return spec


def train_parser(spec: DataSpec, prog: str) -> Parser:
    """All of main.py's flags, with the defaults of a data set."""
    recipe = dataclasses.asdict(spec.recipe)
    defaults = {**recipe, "data_name": spec.name, "model_name": spec.default_model}
    return build_parser(
        prog,
        "Train a model with any combination of gradient penalties; without one, a baseline.",
        FLAGS,
        defaults,
    )


def _folder(config: TrainConfig, objective: str) -> Path:
    """The checkpoint's folder, tried before long work."""
    model = safe_name(config.model_name)
    name = model if model.startswith(config.data_name) else f"{config.data_name}_{model}"
    folder = config.out or free_folder(
        config.checkpoints_dir / f"{name}_{objective}", latest=config.resume or config.overwrite
    )
    there = (folder / checkpoint.CARD).exists()
    if config.resume and not there:
        raise UserError(f"nothing to resume: there is no checkpoint in {folder}")
    if there and not config.resume and not config.overwrite:
        raise UserError(
            f"a checkpoint is in {folder} already: go on with it by --resume, replace it by "
            "--overwrite, or choose another --out"
        )
    return try_folder(folder, "--out")


def _splits(config: TrainConfig) -> tuple[Split, Split]:
    options = LoadOptions(
        data_path=config.data_path,
        cache_dir=config.cache_dir.expanduser(),
        image_size=config.image_size,
        frames=config.frames,
    )
    train = load_split(config.data_name, "train", options)
    if config.limit is not None:
        train = train.limit(config.limit)
    return train, load_split(config.data_name, "validation", options)


def _model_options(config: TrainConfig, spec: DataSpec, split: Split) -> ModelOptions:
    return ModelOptions(
        classes=len(split.classes),
        channels=split.images.shape[1],
        image_size=split.images.shape[-1],
        mean=spec.mean * split.frames,
        std=spec.std * split.frames,
        pretrained=config.pretrained,
        activation=config.activation,
        drop_path=config.drop_path,
        task=spec.task,
        image_height=split.height_if_not_square,
        frames=split.frames,
    )


def _prepared(
    options: TrainingOptions, train: Split, validation: Split
) -> tuple[TrainLoader, Split]:
    """Batches for training, and the validation split as it is evaluated."""
    config = options.config
    augmentation = AUGMENTATIONS[config.augment](*train.images.shape[-2:])
    loader = TrainLoader(
        train,
        config.batch_size,
        options.distortions.after(augmentation),
        config.seed,
        config.workers,
        options.mixing,
    )
    return loader, prepared(validation, augmentation)


def _check_same(now: Card, before: Card, defaults: Mapping[str, Any]) -> None:
    for name, value in now.configuration.items():
        was = before.configuration.get(name, defaults[name])  # an older version may lack a flag
        if name not in INCIDENTAL and was != value:
            raise UserError(
                f"cannot resume: --{name} was {was} and is {value} now; give the same flags as "
                "before, or start again with --overwrite"
            )
