"""`evaluate.py`, `robustbench-gpm evaluate`: checkpoint, attacks, records, report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from glob import escape
from pathlib import Path

import torch

from . import records
from .config import EvaluateConfig
from .core import UserError, pick_device, seed_everything
from .evaluator import Evaluator, Subject
from .files import free_folder, try_folder
from .flags import Parser, build, build_parser, parse
from .graded.command import GRADED_BATCH, check_graded, draw_graded, evaluate_graded
from .journal import Journal, belongs
from .objectives import PENALTIES
from .plans import asked_for
from .records import Records
from .report import (
    draw_animation,
    draw_clip_animation,
    draw_clips,
    draw_curves,
    draw_deformations,
    draw_examples,
)
from .shards import Shard
from .subjects import subjects_of
from .summary import robust_accuracy, write_summary
from .sweep import AttackPlan
from .trust import sentences

RESULTS = Path("results")
USUAL_BATCH = 250


def run(arguments: Sequence[str], prog: str) -> None:
    """Evaluate as `arguments` ask, and print where the results are."""
    values = parse(_parser(prog), arguments)
    config = build(EvaluateConfig, values)
    asked = asked_for(config)
    device = pick_device(config.device)
    shard = None if config.shard is None else Shard.parse(config.shard)
    seed_everything(config.seed)
    try_folder(config.out or RESULTS, "--out")
    subjects = subjects_of(config, values)
    _check_task(config, subjects)
    first = subjects[0]
    shape = (*first.split.images.shape[-2:], first.split.frames)
    plans = [each.plan(first.task, *shape) for each in asked]
    size = config.batch_size or (GRADED_BATCH if subjects[0].task.graded else USUAL_BATCH)
    headers = {subject.name: _header(config, subject, plans, size) for subject in subjects}
    folder = _folder(config, subjects, headers)
    own = {s.name: folder / s.name if len(subjects) > 1 else folder for s in subjects}
    journals = {name: Journal(own[name], header) for name, header in headers.items()}
    for journal in journals.values():
        if journal.resumed:
            print(f"going on with the evaluation in {journal.folder.parent}")
    if subjects[0].task.graded:
        check_graded(config, plans, subjects)
        graded = [
            evaluate_graded(config, s, plans, device, own[s.name], journals[s.name], size, shard)
            for s in subjects
        ]
        if len(subjects) > 1:
            draw_graded(graded, folder)
    else:
        measured = [
            _evaluated(config, s, plans, device, own[s.name], journals[s.name], size, shard)
            for s in subjects
        ]
        if len(subjects) > 1:
            draw_curves(measured, folder)
    for journal in journals.values():
        journal.close()
    print(f"results: {folder}")
    print(f"figure: {folder / 'curve.png'}")


def _check_task(config: EvaluateConfig, subjects: Sequence[Subject]) -> None:
    """Raise UserError for what has no meaning for these subjects together."""
    names = list(dict.fromkeys(subject.task.name for subject in subjects))
    if len(names) > 1:
        raise UserError(
            f"the checkpoints are for {' and '.join(names)}: evaluate those of one task at a time"
        )
    if config.labels == "move" and names[0] not in ("segmentation", "detection"):
        raise UserError(f"--labels move is for masks and boxes, not for {names[0]}: leave it out")


def _evaluated(
    config: EvaluateConfig,
    subject: Subject,
    plans: Sequence[AttackPlan],
    device: torch.device,
    folder: Path,
    journal: Journal,
    batch_size: int,
    shard: Shard | None,
) -> Records:
    """Run all attacks on one subject; write and print what was measured."""
    evaluator = Evaluator(
        subject,
        device,
        batch_size=batch_size,
        seed=config.seed,
        examples=config.examples,
        shared=not config.no_shared_work,
        shard=shard,
        checks=not config.no_checks,
        escalate=config.escalate,
        show_progress=True,
    )
    for plan in plans:
        evaluator.attack(plan, journal)
        records.write(evaluator.records(), folder)  # what is measured is kept
    measured = evaluator.records()
    report(measured, folder)
    return measured


def report(measured: Records, folder: Path) -> None:
    """Write the summary and pictures of `measured` into `folder`; print its curves and flags."""
    write_summary(measured, folder)
    draw_curves([measured], folder)
    shown = int(str(measured.provenance["examples"]))
    pictures = (draw_examples, draw_deformations, draw_animation, draw_clips, draw_clip_animation)
    for draw in pictures:
        draw(measured, folder, shown)
    for attack in measured.attacks:
        points = zip(attack.labels, robust_accuracy(measured, attack), strict=True)
        curve = ", ".join(f"{label}: {robust.value:.1%}" for label, robust in points)
        print(f"{measured.model} under {attack.name}: {curve}")
    for line in sentences(measured.model, measured.flags):
        print(line)


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


def _header(
    config: EvaluateConfig, subject: Subject, plans: Sequence[AttackPlan], batch_size: int
) -> dict[str, object]:
    """What an unfinished evaluation must share with this one to be gone on with."""
    hashes = {name: subject.provenance[name] for name in records.HASHES}
    attacks = [[plan.name, repr(plan.attack), list(plan.budgets)] for plan in plans]
    return {
        **hashes,
        "attacks": attacks,
        "shard": config.shard,
        "batch_size": batch_size,
    }


def _folder(
    config: EvaluateConfig, subjects: Sequence[Subject], headers: Mapping[str, dict[str, object]]
) -> Path:
    """--out, or by default the folder of this evaluation if it was cut off, or a new one."""
    if config.out is not None:
        return config.out
    first = subjects[0].name
    name = first if len(subjects) == 1 else "-vs-".join(s.name for s in subjects)
    share = "" if config.shard is None else f"-shard{config.shard.replace('/', 'of')}"
    wanted = RESULTS / f"{name[:120]}{share}"
    for folder in sorted(RESULTS.glob(f"{escape(wanted.name)}*")):
        if belongs(folder if len(subjects) == 1 else folder / first, headers[first]):
            return folder
    return free_folder(wanted)
