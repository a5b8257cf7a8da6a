"""How gradients become steps: optimizer, learning rate over time, clipping, averaged weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .core import UserError
from .fields import check_ranges, flag

FIRST = 1e-3  # of the learning rate, where a warm-up sets out


@dataclass(frozen=True)
class Optimisation:
    """Flags of the optimizer. The learning rate is set before every step, epochs being fractions.

    A warm-up rises linearly to the learning rate; what follows falls over the epochs that are left.
    """

    epochs: int = flag(40, "passes over the training images", at_least=1)
    optimizer: Literal["sgd", "adamw"] = flag("sgd", "what makes steps of gradients")
    lr: float = flag(0.01, "learning rate at its height", above=0)
    momentum: float = flag(
        0.9, "momentum of SGD, the first beta of AdamW", at_least=0, at_most=1 - 1e-9
    )
    nesterov: bool = flag(False, "SGD: Nesterov's momentum")
    weight_decay: float = flag(
        5e-4, "weight decay; AdamW's spares biases and norms, SGD's nothing", at_least=0
    )
    schedule: Literal["cosine", "linear", "multistep"] = flag(
        "cosine", "how the learning rate falls"
    )
    milestones: tuple[int, ...] = flag(
        (), "multistep: epochs after which it falls tenfold", at_least=0
    )
    warmup_epochs: int = flag(0, "epochs in which it rises first, from next to nothing", at_least=0)
    clip_norm: float | None = flag(
        None, "gradients longer than this, in l2 over all weights, are shortened to it", above=0
    )
    ema: float = flag(
        0.0,
        "decay a step of an exponential moving average of the weights, which is what is then "
        "validated and saved; 0 for none",
        at_least=0,
        at_most=1 - 1e-9,
    )

    def __post_init__(self) -> None:
        """Raise UserError for what cannot be meant."""
        check_ranges(self)
        if self.warmup_epochs >= self.epochs:
            raise UserError(
                f"--warmup_epochs {self.warmup_epochs} leaves none of --epochs {self.epochs} to "
                "train at the full learning rate: warm up for fewer"
            )
        if self.nesterov and (self.optimizer != "sgd" or self.momentum == 0):
            raise UserError(
                "--nesterov is for --optimizer sgd with a momentum above 0: leave it out"
            )

    def make(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of a model's parameters."""
        if self.optimizer == "sgd":
            return torch.optim.SGD(
                model.parameters(),
                self.lr,
                momentum=self.momentum,
                weight_decay=self.weight_decay,
                nesterov=self.nesterov,
            )
        # Biases, norms and other vectors are no part of what decay is to keep small.
        parameters = list(model.parameters())
        groups = [
            {"params": [p for p in parameters if p.dim() > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, self.lr, betas=(self.momentum, 0.999))

    def rate(self, epochs_done: float) -> float:
        """The learning rate after a (fractional) number of epochs."""
        if epochs_done < self.warmup_epochs:
            return self.lr * max(FIRST, epochs_done / self.warmup_epochs)
        left = self.epochs - self.warmup_epochs
        progress = min(1.0, (epochs_done - self.warmup_epochs) / left)
        if self.schedule == "cosine":
            return self.lr * 0.5 * (1 + math.cos(math.pi * progress))
        if self.schedule == "linear":
            return self.lr * (1 - progress)
        return self.lr * float(0.1 ** sum(epochs_done >= each for each in self.milestones))


class Stepper:
    """The optimizer of one training, with its clipping and its average."""

    def __init__(self, model: nn.Module, optimisation: Optimisation) -> None:
        self.model, self.optimisation = model, optimisation
        self.optimizer = optimisation.make(model)
        self.average: AveragedModel | None = None
        if optimisation.ema > 0:
            average = get_ema_multi_avg_fn(optimisation.ema)  # type: ignore[no-untyped-call]
            # Batch norms' statistics belong to the weights, and are averaged with them.
            self.average = AveragedModel(model, multi_avg_fn=average, use_buffers=True)

    @property
    def kept(self) -> nn.Module:
        """The model to validate and to save: with averaged weights, if any are averaged."""
        return self.model if self.average is None else self.average.module

    def begin(self, epochs_done: float) -> None:
        """Forget the last gradient, and set the learning rate."""
        self.optimizer.zero_grad(set_to_none=True)
        for group in self.optimizer.param_groups:
            group["lr"] = self.optimisation.rate(epochs_done)

    def step(self) -> None:
        """Step along `.grad`."""
        if self.optimisation.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.optimisation.clip_norm)
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.model)

    def state(self) -> dict[str, object]:
        """Everything that the next step depends on; tensors and plain values."""
        average = None if self.average is None else self.average.state_dict()
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": average,
        }

    def restore(self, state: dict[str, object]) -> None:
        """Go on from a `state`. Raises KeyError, RuntimeError or ValueError if it doesn't fit."""
        self.model.load_state_dict(state["model"])  # type: ignore[arg-type]
        self.optimizer.load_state_dict(state["optimizer"])  # type: ignore[arg-type]
        if self.average is not None:
            self.average.load_state_dict(state["average"])  # type: ignore[arg-type]
