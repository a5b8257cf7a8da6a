"""What a training was asked for: every flag of `main.py` in its place, checked together."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .attacks import raises_any_loss
from .config import TrainConfig
from .core import UserError
from .datasets import Distortions, Mixing
from .flags import build
from .objectives import (
    AROUND,
    MOVE_WEIGHTS,
    PENALTIES,
    AdversarialOptions,
    Around,
    EdgeOptions,
    GNPOptions,
    Objective,
    Penalised,
    Penalty,
    PenaltyMode,
)
from .optimisation import Optimisation

# All whose fields are flags, in the order in which help tells of them.
FLAGS = (
    *(TrainConfig, Distortions, Mixing, Optimisation),
    *(*AROUND.values(), *PENALTIES.values(), PenaltyMode),
)


@dataclass(frozen=True)
class TrainingOptions:
    """Raises UserError for what does not go together, before any long work."""

    config: TrainConfig
    distortions: Distortions
    mixing: Mixing
    optimisation: Optimisation
    mode: PenaltyMode
    penalties: tuple[Penalty, ...]
    layers: tuple[Around, ...]  # what is put around the penalised loss, from the inside out

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> TrainingOptions:
        """Out of the flags' values, by name."""
        around = [build(options, values) for options in AROUND.values()]
        penalties = [build(penalty, values) for penalty in PENALTIES.values()]
        return cls(
            build(TrainConfig, values),
            build(Distortions, values),
            build(Mixing, values),
            build(Optimisation, values),
            build(PenaltyMode, values),
            tuple(penalty for penalty in penalties if penalty.weight > 0),
            tuple(layer for layer in around if layer.active),
        )

    def check_task(self, task: str) -> None:
        """Raise UserError for what has no meaning in a task other than to classify images."""
        if task == "classification":
            return
        trades = self.adversary is not None and self.adversary.adversarial == "trades"
        single = task == "video"  # one class a sample
        asked = {
            "--randaugment and --random_erasing": any(vars(self.distortions).values()),
            "--edge_lamb": any(isinstance(layer, EdgeOptions) for layer in self.layers),
            "--mixup, --cutmix and --label_smoothing": self.mixing.soft and not single,
            "--adversarial trades": trades and not single,
        }
        for flag, given in asked.items():
            if given:
                raise UserError(f"{flag} is for classification, not for {task}: leave it out")
        if self.adversary and not single and not raises_any_loss(self.adversary.attack()):
            raise UserError(
                f"--adversarial {self.adversary.adversarial} looks for another class than an "
                f"image's own, and in {task} it has many: choose another attack, such as pgd"
            )

    def __post_init__(self) -> None:
        self._check_weights_move_once()
        self._check_adversary()

    @property
    def label(self) -> str:
        """The objective's part of a folder's name."""
        layers = [layer.label for layer in reversed(self.layers)]
        penalties = [penalty.label for penalty in self.penalties]
        mode = self.mode.label if self.penalties else ""
        return "_".join(filter(None, [*layers, *penalties, mode])) or "baseline"

    @property
    def adversary(self) -> AdversarialOptions | None:
        """What training defends against, if anything."""
        return next((o for o in self.layers if isinstance(o, AdversarialOptions)), None)

    @property
    def replays(self) -> int:
        """How often in a row each batch is trained on."""
        return self.adversary.replays if self.adversary else 1

    @property
    def steps(self) -> Optimisation:
        """The optimisation; where batches are replayed, with as many fewer epochs.

        So do Shafahi et al. (2019, arXiv 1904.12843) count them.
        """

        def fewer(epochs: int) -> int:
            return -(-epochs // self.replays)

        given = self.optimisation
        return dataclasses.replace(
            given,
            epochs=fewer(given.epochs),
            warmup_epochs=given.warmup_epochs // self.replays,
            milestones=tuple(fewer(milestone) for milestone in given.milestones),
        )

    def objective(self, batches: int) -> Objective:
        """The objective, for epochs of so many batches."""
        objective: Objective = Penalised(self.penalties, self.mode, batches * self.replays)
        for layer in self.layers:
            objective = layer.around(objective)
        return objective

    def _check_weights_move_once(self) -> None:
        moving = [layer.label for layer in self.layers if isinstance(layer, MOVE_WEIGHTS)]
        if len(moving) > 1:
            raise UserError(
                f"{' and '.join(moving)} would each move the weights for the other: ask for one of "
                "them"
            )

    def _check_adversary(self) -> None:
        if self.adversary is None:
            return
        groups = [o for o in self.layers if isinstance(o, GNPOptions) and o.m_sharpness]
        if self.replays > 1 and groups:
            raise UserError("--adversarial free needs whole batches: leave out --m_sharpness")
        if self.mixing.soft and not raises_any_loss(self.adversary.attack()):
            raise UserError(
                f"--adversarial {self.adversary.adversarial} looks for another class than an "
                "image's own, which --mixup, --cutmix and --label_smoothing blur: leave them out, "
                "or choose another attack, such as pgd"
            )
