"""`evaluate.py`, `robustbench-gpm evaluate`: checkpoint, attacks, records, report."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import checkpoint, records
from .attacks import ATTACKS, Attack
from .config import EvaluateConfig
from .core import UserError, pick_device, seed_everything
from .datasets import AUGMENTATIONS, DATASETS, LoadOptions, Split, load_split, prepared
from .evaluator import AttackPlan, Evaluator, Subject
from .fields import plain
from .files import free_folder, safe_name, try_folder
from .flags import Parser, build, build_parser, parse
from .models import ModelOptions, build_model, check_name, load_weights
from .objectives import PENALTIES
from .records import Records
from .report import draw_curves, draw_examples
from .tasks import TASKS

RESULTS = Path("results")


def run(arguments: Sequence[str], prog: str) -> None:
    """Evaluate as `arguments` ask, and print where the results are."""
    values = parse(_parser(prog), arguments)
    config = build(EvaluateConfig, values)
    budgets = [str(budget) for budget in config.budgets]  # a YAML file may hold plain numbers
    plans = [_plan(name, budgets) for name in dict.fromkeys(config.attack)]
    if not plans:
        raise UserError(f"--attack needs at least one of {', '.join(ATTACKS)}")
    device = pick_device(config.device)
    seed_everything(config.seed)
    try_folder(config.out or RESULTS, "--out")
    subjects = _subjects(config, values)
    folder = _folder(config, subjects)
    measured = []
    for subject in subjects:
        evaluator = Evaluator(
            subject,
            device,
            batch_size=config.batch_size,
            seed=config.seed,
            examples=config.examples,
            show_progress=True,
        )
        own = folder / subject.name if len(subjects) > 1 else folder
        for plan in plans:
            evaluator.attack(plan)
            records.write(evaluator.records(), own)  # what is measured is kept, come what may
        measured.append(evaluator.records())
        _report(measured[-1], own)
    if len(subjects) > 1:
        draw_curves(measured, folder)
    print(f"results: {folder}")
    print(f"figure: {folder / 'curve.png'}")


def _parser(prog: str) -> Parser:
    parser = build_parser(
        prog,
        "Attack models over a range of budgets and draw accuracy versus budget.",
        [EvaluateConfig],
        {},
    )
    for penalty in PENALTIES.values():  # each objective's weight chooses among checkpoints
        name = penalty.lamb_flag()
        text = "choose the newest checkpoint that was trained with this weight"
        parser.add_argument(f"--{name}", type=float | None, default=None, help=text)
    return parser


def _plan(name: str, budgets: Sequence[str]) -> AttackPlan:
    """The attack and its budgets. Raises UserError for an unknown name or a bad budget."""
    attack = ATTACKS[name]
    asked: list[str] = []
    for item in budgets:
        owner, separator, listed = item.rpartition("=")
        if separator and owner not in ATTACKS:
            raise UserError(f"--budgets {item}: '{owner}' is none of {', '.join(ATTACKS)}")
        if owner in ("", name):
            asked += listed.split(",")
    chosen = {_budget(text, attack) for text in asked} or set(attack.threat.default_budgets)
    if len({records.FOOLED.format(name, budget) for budget in chosen}) < len(chosen):
        raise UserError("--budgets must differ in their first six digits: leave out one of a pair")
    return AttackPlan(name, attack, tuple(sorted(chosen)))


def _budget(text: str, attack: Attack) -> float:
    """A number or a fraction such as 8/255, in the unit of the attack's threat."""
    numerator, _, denominator = text.partition("/")
    try:
        budget = float(numerator) / float(denominator or 1)
    except (ValueError, ZeroDivisionError):
        raise UserError(f"--budgets {text} is not a number such as 0.5 or 8/255") from None
    if not 0 < budget <= attack.threat.largest or budget == float("inf"):
        hint = ": write 8/255 for eight grey levels" if attack.threat.largest == 1 else ""
        most = f" and at most {attack.threat.largest:g}" if attack.threat.largest == 1 else ""
        raise UserError(
            f"--budgets {text} must be above 0{most} ({attack.threat.unit} for "
            f"{attack.threat.name}){hint}"
        )
    return budget


def _subjects(config: EvaluateConfig, values: Mapping[str, Any]) -> list[Subject]:
    """Every model to evaluate, with its data, before any long work."""
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
        config.checkpoints_dir, {name: v for name, v in wanted.items() if v is not None}
    )
    print(f"checkpoint: {path} (the newest that fits; --checkpoint names another)")
    return path


def _from_checkpoint(path: Path, config: EvaluateConfig) -> Subject:
    loaded = checkpoint.load(path)
    card = loaded.card
    split = _split(config, config.data_name or card.data_name, card.configuration)
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
    check_name(name)
    data_name = config.data_name or ""
    split = _split(config, data_name, {})
    channels = split.images.shape[1]
    options = ModelOptions(
        classes=len(split.classes),
        channels=channels,
        image_size=split.images.shape[-1],
        mean=config.mean or (0.0,) * channels,
        std=config.std or (1.0,) * channels,
        pretrained=config.weights is None and name.startswith(("timm:", "torchvision:")),
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
        TASKS[DATASETS[data_name].task](),
        _provenance(config, checkpoint.fingerprint(model), split, facts),
    )


def _split(config: EvaluateConfig, data_name: str, trained: Mapping[str, Any]) -> Split:
    """The images to evaluate on, brought to the form the model was validated on."""
    options = LoadOptions(
        data_path=config.data_path or _trained_path(trained),
        cache_dir=config.cache_dir.expanduser(),
        image_size=config.image_size or trained.get("image_size"),
    )
    split = load_split(data_name, config.split, options)
    if config.limit is not None:
        split = split.limit(config.limit)
    augmentation = AUGMENTATIONS[trained.get("augment", "none")](split.images.shape[-1])
    return prepared(split, augmentation)


def _trained_path(trained: Mapping[str, Any]) -> Path | None:
    """Where the data lay in training, if that was said."""
    path = trained.get("data_path")
    return Path(path) if path else None


def _check_fit(split: Split, options: ModelOptions, name: str) -> None:
    channels, _, width = split.images.shape[1:]
    if (channels, width) != (options.channels, options.image_size):
        raise UserError(
            f"{name} takes images of {options.channels} channels and {options.image_size} pixels, "
            f"and the data has {channels} channels and {width} pixels: choose the data set it was "
            "trained on"
        )


def _provenance(
    config: EvaluateConfig, weights_hash: str, split: Split, facts: Mapping[str, object]
) -> dict[str, object]:
    configuration = plain(dataclasses.asdict(config))
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


def _folder(config: EvaluateConfig, subjects: Sequence[Subject]) -> Path:
    name = subjects[0].name if len(subjects) == 1 else "-vs-".join(s.name for s in subjects)
    return config.out or free_folder(RESULTS / name[:120])


def _report(measured: Records, folder: Path) -> None:
    records.write_summary(measured, folder)
    draw_curves([measured], folder)
    draw_examples(measured, folder)
    for attack in measured.attacks:
        shown = zip(attack.labels, records.robust_accuracy(measured, attack), strict=True)
        curve = ", ".join(f"{label}: {robust.value:.1%}" for label, robust in shown)
        print(f"{measured.model} under {attack.name}: {curve}")
