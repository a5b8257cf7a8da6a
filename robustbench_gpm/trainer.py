"""The training loop: an objective fills `.grad`, the trainer steps, validates and saves."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from . import checkpoint
from .checkpoint import Card
from .compiled import compiled
from .core import Loss, UserError, seed_everything
from .datasets import Split, TrainLoader
from .objectives import Objective
from .optimisation import Optimisation, Stepper
from .progress import Bar, bar
from .tasks import Task


@dataclass(frozen=True)
class Plan:
    """How a training goes on."""

    optimisation: Optimisation
    precision: Literal["fp32", "bf16"]
    seed: int
    replays: int = 1  # how often in a row each batch is trained on
    compile: bool = False
    validation_batch: int = 500

    @property
    def epochs(self) -> int:
        """Passes over the training images."""
        return self.optimisation.epochs


@dataclass(frozen=True)
class MixedPrecision:
    """A loss whose forward pass runs in bfloat16 where that is safe; the weights stay float32."""

    inner: Loss
    device: str

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast(self.device, torch.bfloat16):
            return self.inner(model, x, y).float()

    def judged(self, model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(self.device, torch.bfloat16):
            losses, fooled = self.inner.judged(model, x, y)
            return losses.float(), fooled


class Trainer:
    """One training run: what it works on, and where it stands."""

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        task: Task,
        plan: Plan,
        device: torch.device,
        folder: Path,
        card: Card,
        *,
        show_progress: bool = False,
    ) -> None:
        """`card` says what is trained; a copy with the history is saved to `folder` every epoch."""
        self.model, self.objective, self.task, self.plan = model.to(device), objective, task, plan
        self.device, self.folder, self.card, self.show = device, folder, card, show_progress
        self.stepper = Stepper(self.model, plan.optimisation)
        self.runner = compiled(self.model) if plan.compile else self.model
        self.loss = task.loss
        if plan.precision == "bf16":
            self.loss = MixedPrecision(task.loss, device.type)

    def run(self, loader: TrainLoader, validation: Split) -> Card:
        """Train for the epochs that are left; save after each. Returns the finished card."""
        for epoch in range(len(self.card.history), self.plan.epochs):
            seed_everything(hash((self.plan.seed, epoch)))
            title = f"epoch {epoch + 1}/{self.plan.epochs}"
            began = time.perf_counter()
            with bar(title, len(loader), "batch", show=self.show) as progress:
                log = self._epoch(loader, epoch, progress)
                self._check_weights(epoch)
                kept, size = self.stepper.kept, self.plan.validation_batch
                log[self.task.validated] = self.task.validate(kept, validation, self.device, size)
                progress.set_postfix_str(_figures(log))
            self._save({**log, "seconds": round(time.perf_counter() - began, 1)})
        return self.card

    def _epoch(self, loader: TrainLoader, epoch: int, progress: Bar) -> dict[str, float]:
        self.model.train()
        log = Averages(epoch)
        for batch, (x, y) in enumerate(loader.epoch(epoch)):
            images, labels = x.to(self.device), y.to(self.device)
            for replay in range(self.plan.replays):
                done = epoch + (batch + replay / self.plan.replays) / len(loader)
                self.stepper.begin(done)
                objective = self.objective.at(done)
                log.add(batch, objective.backward(self.runner, images, labels, self.loss))
                self.stepper.step()
            progress.update(1)
            progress.set_postfix_str(_figures(log.means))
        return log.means

    def _check_weights(self, epoch: int) -> None:
        if not all(bool(p.isfinite().all()) for p in self.model.parameters()):
            raise UserError(
                f"weights became NaN or infinite in epoch {epoch + 1}: lower --lr or the "
                "penalty's weight; the epochs before are saved"
            )

    def _save(self, log: dict[str, float]) -> None:
        history = [*self.card.history, log]
        self.card = replace(
            self.card,
            history=history,
            best_epoch=_best_epoch(history, self.task.validated),
            finished=len(history) == self.plan.epochs,
            saved_at=checkpoint.now(),
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.card.best_epoch == len(history):
            checkpoint.save_weights(self.stepper.kept, self.folder / checkpoint.BEST)
        checkpoint.save_weights(self.stepper.kept, self.folder / checkpoint.LAST)
        checkpoint.save_resume({**self.stepper.state(), "history": history}, self.folder)
        checkpoint.write_card(self.card, self.folder)

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `checkpoint.load_resume` read. Raises UserError if it doesn't fit."""
        try:
            self.stepper.restore(state)
            history = list(state["history"])
            best = _best_epoch(history, self.task.validated)
            self.card = replace(self.card, history=history, best_epoch=best)
        except (KeyError, RuntimeError, ValueError):
            raise UserError(
                f"{self.folder / checkpoint.RESUME} belongs to another model: "
                "start again with --overwrite"
            ) from None


def _best_epoch(history: list[dict[str, float]], metric: str) -> int:
    """The epoch, counted from 1, of the best value of a metric; of equals, the last."""
    values = [entry[metric] for entry in history]
    return 1 + max(range(len(values)), key=lambda i: (values[i], i))


class Averages:
    """Means of what an objective logs, each over the steps that logged it."""

    def __init__(self, epoch: int) -> None:
        self._epoch, self._totals, self._counts = epoch, dict[str, float](), Counter[str]()

    def add(self, batch: int, log: Mapping[str, Tensor]) -> None:
        """Take in one step's figures. Raises UserError for one that is not finite."""
        for name, value in log.items():
            number = float(value)
            if not math.isfinite(number):
                raise UserError(
                    f"the {name} became {number} in epoch {self._epoch + 1}, batch {batch + 1}: "
                    "lower --lr or the penalty's weight; the epochs before are saved"
                )
            self._totals[name] = self._totals.get(name, 0.0) + number
            self._counts[name] += 1

    @property
    def means(self) -> dict[str, float]:
        """The means so far, by name."""
        return {name: total / self._counts[name] for name, total in self._totals.items()}


def _figures(log: dict[str, float]) -> str:
    return " ".join(f"{name} {value:.3g}" for name, value in log.items())
