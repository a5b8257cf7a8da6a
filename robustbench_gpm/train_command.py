"""`main.py`, `robustbench-gpm train`: flags, data, model, objective, trainer, checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import checkpoint
from .checkpoint import Card
from .config import TrainConfig
from .core import UserError, pick_device, seed_everything
from .datasets import (
    AUGMENTATIONS,
    DATASETS,
    DataSpec,
    LoadOptions,
    Split,
    TrainLoader,
    load_split,
    prepared,
)
from .fields import plain
from .files import free_folder, safe_name, try_folder
from .flags import Parser, build, build_parser, parse, peek
from .models import ModelOptions, build_model, check_name
from .objectives import (
    AROUND,
    MOVE_WEIGHTS,
    PENALTIES,
    AdversarialOptions,
    Around,
    GNPOptions,
    Objective,
    Penalised,
    Penalty,
    PenaltyMode,
)
from .tasks import TASKS
from .trainer import Plan, Trainer

# What may differ between an interrupted training and its resumption: it doesn't change the result.
INCIDENTAL = {"resume", "overwrite", "device", "workers", "cache_dir", "checkpoints_dir", "out"}


def run(arguments: Sequence[str], prog: str) -> None:
    """Train as `arguments` ask, and print where the checkpoint is."""
    spec = DATASETS[peek(arguments, "data_name", "digits")]
    values = parse(_parser(spec, prog), arguments)
    config = build(TrainConfig, values)
    AUGMENTATIONS[config.augment]  # names are looked up before anything is loaded
    check_name(config.model_name)
    penalties, layers = _penalties(values), _layers(values)
    mode = build(PenaltyMode, values)
    _check_together(config, layers, mode, penalties)
    device = pick_device(config.device)
    labels = [*(o.label for o in reversed(layers)), *(p.label for p in penalties)]
    folder = _folder(config, [*labels, *filter(None, [mode.label if penalties else ""])])
    seed_everything(config.seed)
    train, validation = _splits(config)
    options = _model_options(config, spec, train)
    augmentation = AUGMENTATIONS[config.augment](train.images.shape[-1])
    loader = TrainLoader(train, config.batch_size, augmentation, config.seed, config.workers)
    replays = _replays(layers)
    objective: Objective = Penalised(penalties, mode, len(loader) * replays)
    for layer in layers:
        objective = layer.around(objective)
    card = Card(
        model_name=config.model_name,
        model_options=dataclasses.asdict(options),
        task=spec.task,
        data_name=config.data_name,
        classes=train.classes,
        objective=repr(objective),
        configuration=plain(values),
        versions=checkpoint.versions(),
    )
    trainer = Trainer(
        build_model(config.model_name, options),
        objective,
        TASKS[spec.task](),
        _plan(config, replays),
        device,
        folder,
        card,
        show_progress=True,
    )
    if config.resume:
        _check_same(card, checkpoint.read_card(folder))
        trainer.restore(checkpoint.load_resume(folder))
    card = trainer.run(loader, prepared(validation, augmentation))
    best = card.history[card.best_epoch - 1]["validation_accuracy"]
    print(f"best validation accuracy {best:.2%}, in epoch {card.best_epoch}")
    print(f"checkpoint: {folder}")


def _parser(spec: DataSpec, prog: str) -> Parser:
    recipe = dataclasses.asdict(spec.recipe)
    defaults = {**recipe, "data_name": spec.name, "model_name": spec.default_model}
    return build_parser(
        prog,
        "Train a model with any combination of gradient penalties; without one, a baseline.",
        [TrainConfig, *AROUND.values(), *PENALTIES.values(), PenaltyMode],
        defaults,
    )


def _penalties(values: Mapping[str, Any]) -> tuple[Penalty, ...]:
    built = [build(penalty, values) for penalty in PENALTIES.values()]
    return tuple(penalty for penalty in built if penalty.weight > 0)


def _layers(values: Mapping[str, Any]) -> tuple[Around, ...]:
    """What is put around the penalised loss, from the inside out."""
    built = [build(options, values) for options in AROUND.values()]
    return tuple(layer for layer in built if layer.active)


def _folder(config: TrainConfig, labels: Sequence[str]) -> Path:
    """The checkpoint's folder, tried before long work."""
    objective = "_".join(labels) or "baseline"
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
        mean=spec.mean,
        std=spec.std,
        pretrained=config.pretrained,
        activation=config.activation,
    )


def _plan(config: TrainConfig, replays: int) -> Plan:
    """The flags' plan; where batches are replayed, epochs are as many fewer (Shafahi et al.)."""
    names = [f.name for f in dataclasses.fields(Plan) if f.name != "replays"]
    plan = Plan(**{name: getattr(config, name) for name in names}, replays=replays)
    milestones = tuple(-(-milestone // replays) for milestone in plan.milestones)
    return dataclasses.replace(plan, epochs=-(-plan.epochs // replays), milestones=milestones)


def _replays(layers: Sequence[Around]) -> int:
    """How often in a row each batch is trained on."""
    return max((o.replays for o in layers if isinstance(o, AdversarialOptions)), default=1)


def _check_together(
    config: TrainConfig, layers: Sequence[Around], mode: PenaltyMode, penalties: Sequence[Penalty]
) -> None:
    """Raise UserError for what does not go together, before any long work."""
    moving = [layer.label for layer in layers if isinstance(layer, MOVE_WEIGHTS)]
    if len(moving) > 1:
        raise UserError(
            f"{' and '.join(moving)} would each move the weights for the other: ask for one of them"
        )
    if _replays(layers) > 1 and any(isinstance(o, GNPOptions) and o.m_sharpness for o in layers):
        raise UserError("--adversarial free needs whole batches: leave out --m_sharpness")
    differences = bool(penalties) and mode.penalty_mode == "finite_difference"
    if differences and config.precision == "bf16":
        raise UserError(
            "--penalty_mode finite_difference takes small differences, which --precision bf16 "
            "rounds away: use fp32"
        )


def _check_same(now: Card, before: Card) -> None:
    for name, value in now.configuration.items():
        was = before.configuration.get(name)
        if name not in INCIDENTAL and was != value:
            raise UserError(
                f"cannot resume: --{name} was {was} and is {value} now; give the same flags as "
                "before, or start again with --overwrite"
            )
