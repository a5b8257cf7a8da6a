"""Free adversarial training (Shafahi et al. 2019, arXiv 1904.12843, algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from ..attacks.flow import FlowPGD
from ..attacks.geometry import project, shrink, steepest
from ..attacks.pgd import PGD
from ..core import Loss
from .base import Objective
from .rows import FirstNotes, rows_of
from .weights import Moment


@dataclass
class Kept:
    """A perturbation (B,...) that lasts, and the epoch (counted from 0) that it belongs to."""

    perturbation: Tensor | None = None
    epoch: int | None = None


@dataclass(frozen=True)
class FreeTraining:
    """One backward pass gives the weights' gradient and the next step of the perturbation.

    A call is one replay: `inner` at the images as perturbed so far; then, from the gradient to
    these images that came with it, one of the attack's steps, back into the budget. Whoever trains
    hands over each batch `replays` times in a row, steps the weights after each, and makes that
    many times fewer epochs.

    The perturbation is kept from replay to replay and, as in the authors' code, from batch to
    batch: the n-th image of a batch sets out with that of the n-th image before it, whatever that
    showed. With each epoch, as `at` tells, it begins at zero, so that an epoch depends on nothing
    but the weights (in that code it does so once, at the very beginning).

    `attack` says what is perturbed and in which ball, intensities (PGD) or a flow (FlowPGD), and
    how large a step is; its number of steps and its start play no part. Intensities are drawn back
    into [0,1] before each replay. The gradient is that of the loss alone, without penalties, at the
    weights themselves and in the model's own mode.
    """

    attack: PGD | FlowPGD
    budget: float
    inner: Objective
    replays: int = 8
    kept: Kept = field(default_factory=Kept, repr=False, compare=False)

    def at(self, epoch: float) -> FreeTraining:
        """The same, on the same perturbation; without one where another epoch has begun."""
        if self.kept.epoch != int(epoch):
            self.kept.perturbation, self.kept.epoch = None, int(epoch)
        return replace(self, inner=self.inner.at(epoch))

    def backward(self, model: nn.Module, x: Tensor, y: Tensor, loss: Loss) -> dict[str, Tensor]:
        """See `Objective.backward`; logs what the inner objective logs."""
        perturbation = self._fitting(x).requires_grad_()
        shown = self._shown(x, perturbation)
        images = shown.detach().clamp(0, 1)  # which rounding may have passed by a hair
        watched = Watched(loss, y, FirstNotes.like(images))
        moment = Moment.of(model, x.device)
        log = self.inner.backward(model, images, rows_of(x), watched)
        slope = watched.slopes.values
        if not bool(watched.slopes.known.all()):  # the inner objective had no use for it
            with moment.again():
                slope = _slope(model, images, y, loss)
        (gradient,) = torch.autograd.grad(shown, perturbation, slope)
        norm = self.attack.threat.name
        step = self.attack.step_size * self.budget * steepest(gradient.nan_to_num(), norm)
        self._keep(shrink(perturbation.detach() + step, self.budget, norm))
        return log

    def _shown(self, x: Tensor, perturbation: Tensor) -> Tensor:
        if isinstance(self.attack, FlowPGD):
            return self.attack.render(x, perturbation)
        return x + perturbation

    def _fitting(self, x: Tensor) -> Tensor:
        """What is kept, for as many images as x (B,C,H,W) has; zero for those that are new."""
        flow = isinstance(self.attack, FlowPGD)
        fitting = torch.zeros_like(x[:, :1].expand(-1, 2, -1, -1) if flow else x)
        kept = self.kept.perturbation
        if kept is not None and kept.shape[1:] == fitting.shape[1:]:
            known = min(len(x), len(kept))
            fitting[:known] = kept[:known]
        if flow:
            return fitting
        return project(x, x + fitting, self.budget, self.attack.threat.name) - x

    def _keep(self, perturbation: Tensor) -> None:
        """Replace the first rows of what is kept, and leave those that the batch hasn't got."""
        kept = self.kept.perturbation
        others = [] if kept is None else [kept[len(perturbation) :]]
        self.kept.perturbation = torch.cat([perturbation, *others])


@dataclass(frozen=True)
class Watched:
    """A loss that notes the first gradient that is taken of it to its images: `slopes` (B,C,H,W).

    Its labels are rows of the batch (rows.py). What is differentiated may be the losses' sum or
    their mean, so that of a slope only the direction has a meaning.
    """

    inner: Loss
    y: Tensor
    slopes: FirstNotes

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        x = x if x.requires_grad else x.detach().requires_grad_()
        losses = self.inner(model, x, self.y[y])
        begun: list[bool] = []  # or else the gradient is that of something else, as of a logit
        losses.register_hook(lambda _: begun.append(True))  # type: ignore[no-untyped-call]
        x.register_hook(  # type: ignore[no-untyped-call]
            lambda slope: self.slopes.note(y, slope) if begun else None
        )
        return losses

    def judged(self, model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The inner loss's own."""
        return self.inner.judged(model, x, self.y[y])


def _slope(model: nn.Module, x: Tensor, y: Tensor, loss: Loss) -> Tensor:
    x = x.detach().requires_grad_()
    (slope,) = torch.autograd.grad(loss(model, x, y).sum(), x)
    return slope
