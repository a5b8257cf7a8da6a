"""What every attack is: frozen hyper-parameters, and a pure call that returns perturbed images."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import ClassVar, Literal, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from ..core import Loss, Samples, UserError, frozen
from ..deformation import Padding, warp
from ..losses import LOSSES
from .geometry import shrink
from .perturbed import Perturbed
from .threats import FLOW, Threat


@dataclass(frozen=True)
class Attack(ABC):
    """Hyper-parameters of an attack; calling it attacks.

    A call never changes the model: not its mode, parameters, `requires_grad` or `.grad`. What it
    returns lies in [0,1] and inside the budget, and depends, for each sample, on that sample alone.

    Every whole-number hyper-parameter is at least 1 and every other number at least 0 and finite;
    UserError otherwise, and for a word that is not among a hyper-parameter's choices.
    """

    usual_loss: ClassVar[str] = "cross_entropy"  # what it raises on class logits, unless told
    minimum_norm: ClassVar[bool] = False  # looks for the smallest perturbation: see `find`

    def __post_init__(self) -> None:
        """Refuse hyper-parameters that cannot be meant."""
        hints = get_type_hints(type(self))
        for field in fields(self):
            _check(type(self).__name__, field.name, getattr(self, field.name), hints[field.name])

    @property
    def loss_name(self) -> str:
        """The name of the loss it raises where it is handed none."""
        return self.usual_loss

    @property
    @abstractmethod
    def threat(self) -> Threat:
        """How the size of a perturbation is measured, and in what unit."""

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        budget: float,
        loss: Loss | None = None,
        samples: Samples | None = None,
    ) -> Tensor:
        """Perturbed images (B,C,H,W) in [0,1] for images x in [0,1] with labels y (B,).

        `budget` is in the unit of `self.threat`; `loss` is what to raise (by default the
        classification loss named by `loss_name`); `samples` says who the samples are, for their
        random streams and the book of costs (by default 0, 1, ... with seed 0). Raises UserError
        for images outside [0,1] and for a budget below 0.
        """
        found = self.find(model, x, y, budget=budget, loss=loss, samples=samples)
        return self.within(x.detach(), found, budget).images

    def find(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        budget: float,
        loss: Loss | None = None,
        samples: Samples | None = None,
    ) -> Perturbed:
        """The same, with how the images came about; the arguments are `__call__`'s.

        A minimum-norm attack tells what it found wherever that lies: `budget` only says that what
        is beyond is of no use, so that the search may spend its effort nearer.
        """
        loss, samples = self._prepare(x, budget, loss, samples)
        with attacking(model):
            return self.outcome(model, x.detach(), y, budget, loss, samples)

    def each_found(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        budget: float,
        loss_of: Callable[[Attack], Loss],
        samples: Samples,
    ) -> Iterator[Perturbed]:
        """What the attack finds, and each attack that it is made of, for whoever has scores.

        Where to be fooled is not a yes or no, only a score can tell which of them is the worst.
        `loss_of` an attack is what it raises; the other arguments are `__call__`'s.
        """
        loss = loss_of(self)
        yield self.find(model, x, y, budget=budget, loss=loss, samples=samples)

    def within(self, x: Tensor, found: Perturbed, budget: float) -> Perturbed:
        """What was found, drawn back into the budget where it may lie beyond."""
        return self.drawn_in(x, found, budget) if self.minimum_norm else found

    def outcome(
        self, model: nn.Module, x: Tensor, y: Tensor, budget: float, loss: Loss, samples: Samples
    ) -> Perturbed:
        """The attack itself, on a frozen model; called by `find`, and by attacks made of others."""
        return Perturbed.changed(x, self.perturb(model, x, y, budget, loss, samples))

    @abstractmethod
    def perturb(
        self, model: nn.Module, x: Tensor, y: Tensor, budget: float, loss: Loss, samples: Samples
    ) -> Tensor:
        """The images of `outcome`."""

    def size(self, found: Perturbed) -> Tensor:
        """The sizes (B,) of perturbations, in the unit of the threat."""
        return self.threat.size(found.change)

    def drawn_in(self, x: Tensor, found: Perturbed, budgets: float | Tensor) -> Perturbed:
        """The same perturbations of x, each drawn back into a budget, or one a sample (B,)."""
        images = (x + shrink(found.change, budgets, self.threat.name)).clamp(0, 1)
        return Perturbed.changed(x, images)

    def default_budgets(self, height: int, width: int) -> tuple[float, ...]:  # noqa: ARG002
        """The budgets of a curve when none are asked for, for images of that size."""
        return self.threat.default_budgets

    def _prepare(
        self, x: Tensor, budget: float, loss: Loss | None, samples: Samples | None
    ) -> tuple[Loss, Samples]:
        if not budget >= 0:  # written so that NaN is refused too
            raise UserError(f"a budget must be at least 0, not {budget}")
        if math.isinf(budget) and not self.unbounded:
            raise UserError(f"{type(self).__name__} needs a finite budget, not {budget}")
        if x.numel() > 0 and not bool((x.amin() >= 0) & (x.amax() <= 1)):
            raise UserError(
                f"images must lie in [0,1] and these run from {x.amin():.4g} to {x.amax():.4g}: "
                "rescale them, and leave any normalisation to the model"
            )
        return loss or LOSSES[self.loss_name], samples or Samples(range(len(x)))

    @property
    def scout(self) -> Attack | None:
        """A cheap attack worth a try before this one, where there is one: see sweep.py."""
        return None

    @property
    def shrinks(self) -> bool:
        """Whether what it finds may be drawn back into smaller budgets."""
        return True

    @property
    def unbounded(self) -> bool:
        """Whether a budget of infinity has a meaning."""
        return False


@dataclass(frozen=True)
class FlowAttack(Attack):
    """An attack that moves pixels: it finds a flow in pixels and warps the image by it.

    `padding` says what lies beyond the image's edge: the edge's own pixel (`border`), which is this
    package's one policy, or black (`zeros`).
    """

    padding: Padding = "border"

    @property
    def threat(self) -> Threat:
        return FLOW

    def flow(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        budget: float,
        loss: Loss | None = None,
        samples: Samples | None = None,
    ) -> Tensor:
        """The flow (B,2,H,W), in pixels, that the attack finds; the arguments are `__call__`'s."""
        found = self.find(model, x, y, budget=budget, loss=loss, samples=samples)
        return self.within(x.detach(), found, budget).flow

    def outcome(
        self, model: nn.Module, x: Tensor, y: Tensor, budget: float, loss: Loss, samples: Samples
    ) -> Perturbed:
        return self.moved(x, self.deform(model, x, y, budget, loss, samples))

    def perturb(
        self, model: nn.Module, x: Tensor, y: Tensor, budget: float, loss: Loss, samples: Samples
    ) -> Tensor:
        found = self.outcome(model, x, y, budget, loss, samples)
        return self.within(x, found, budget).images

    def moved(self, x: Tensor, flow: Tensor) -> Perturbed:
        """Images x (B,C,H,W) warped by `flow` (B,2,H,W) in pixels, inside [0,1]."""
        images = self.render(x, flow).clamp(0, 1)  # the weights' rounding may pass 1 by a hair
        return Perturbed.moved(images, flow)

    def render(self, x: Tensor, flow: Tensor) -> Tensor:
        """Images x (B,C,H,W) warped by `flow` (B,2,H,W) in pixels."""
        return warp(x, flow, self.padding)

    def size(self, found: Perturbed) -> Tensor:
        return self.threat.size(found.flow)

    def drawn_in(self, x: Tensor, found: Perturbed, budgets: float | Tensor) -> Perturbed:
        return self.moved(x, self.smaller(found.flow, budgets))

    def smaller(self, flow: Tensor, budgets: float | Tensor) -> Tensor:
        """The nearest flows (B,2,H,W) of the attack's kind inside a budget, or one each (B,)."""
        return shrink(flow, budgets, self.threat.name)

    @abstractmethod
    def deform(
        self, model: nn.Module, x: Tensor, y: Tensor, budget: float, loss: Loss, samples: Samples
    ) -> Tensor:
        """The search for a flow, on a frozen model; of a minimum-norm attack the nearest found."""


@contextmanager
def attacking(model: nn.Module) -> Iterator[None]:
    """The model frozen and gradients on, even where the caller has switched them off."""
    with frozen(model), torch.enable_grad():
        yield


def _check(attack: str, name: str, value: object, hint: object) -> None:
    if get_origin(hint) is Literal and value not in get_args(hint):
        choices = ", ".join(str(choice) for choice in get_args(hint))
        raise UserError(f"{attack}: {name} must be one of {choices}, not '{value}'")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    least = 1 if hint is int else 0
    if not least <= value < math.inf:
        raise UserError(f"{attack}: {name} must be at least {least} and finite, not {value}")
