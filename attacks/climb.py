"""The loop of APGD (Croce & Hein 2020, arXiv 2003.01690, algorithm 1), for any parameter space.

A sample climbs from its best point with a step of its own; a step rule says how, and may be given
another space by its three functions: what a parameter looks like as images, the direction of
steepest ascent, and the nearest allowed parameter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Protocol

import torch
from torch import Tensor, nn

from ..core import Loss, Samples
from .ascent import Render, as_given
from .geometry import per_sample

Direction = Callable[[Tensor], Tensor]  # gradient (b,...) -> direction of size 1
Project = Callable[[Tensor, Tensor], Tensor]  # (images x, parameter p) -> nearest allowed p


class Rows:
    """Tensors with one row for each sample still climbing."""

    def keep(self, chosen: Tensor) -> None:
        """Drop the rows of the samples that `chosen` (b,) bool leaves out."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value[chosen])


class Climbers(Rows):
    """Where the samples stand: parameters p (b,...), their losses (b,) and their gradients."""

    def __init__(self, x: Tensor, y: Tensor, start: Tensor) -> None:
        self.x, self.y, self.p = x, y, start
        self.losses = x.new_full((len(x),), -torch.inf)
        self.gradient = torch.zeros_like(start)
        self.best, self.best_gradient, self.best_loss = start, self.gradient, self.losses
        self.found, self.found_loss = start, self.losses  # of the fooling ones, the best
        self.fooled = torch.zeros(len(x), dtype=torch.bool, device=x.device)

    def learn(self, losses: Tensor, fooled: Tensor, gradient: Tensor) -> None:
        """Take in what was seen at p."""
        self.losses, self.gradient = losses, gradient
        better = exceeds(losses, self.best_loss)
        self.best_loss = torch.where(better, losses, self.best_loss)
        self.best = pick(better, self.p, self.best)
        self.best_gradient = pick(better, gradient, self.best_gradient)
        taken = fooled & (~self.fooled | exceeds(losses, self.found_loss))
        self.found_loss = torch.where(taken, losses, self.found_loss)
        self.found = pick(taken, self.p, self.found)
        self.fooled = self.fooled | fooled

    def go_back(self, chosen: Tensor) -> None:
        """Move the chosen samples to the best point each has seen."""
        self.p = pick(chosen, self.best, self.p)
        self.gradient = pick(chosen, self.best_gradient, self.gradient)


class StepRule(Protocol):
    """How to get on: state of its own, one row a sample, that `keep` cuts to those chosen."""

    def advance(self, now: Climbers, done: int) -> Tensor:
        """The next parameter (b,...), after `done` steps; may first send samples back."""
        ...

    def keep(self, chosen: Tensor) -> None: ...


@dataclass(frozen=True)
class Climbed:
    """How far each sample got.

    found: the answer (B,...): a point that fools, where one was met, and otherwise the best point.
    best, loss: the point (B,...) of highest loss, to climb on from, and that loss (B,); -inf where
    nothing was spent. fooled: (B,) bool.
    """

    found: Tensor
    best: Tensor
    loss: Tensor
    fooled: Tensor

    @classmethod
    def nowhere(cls, start: Tensor) -> Climbed:
        """Before the first step."""
        none = torch.zeros(len(start), dtype=torch.bool, device=start.device)
        lowest = start.new_full((len(start),), -torch.inf)
        return cls(start.clone(), start.clone(), lowest, none)

    def put(self, rows: Tensor, found: Tensor, best: Tensor, loss: Tensor, fooled: Tensor) -> None:
        """Write what the samples at `rows` (b,) reached."""
        self.found[rows], self.best[rows] = found, best
        self.loss[rows], self.fooled[rows] = loss, fooled


def climb(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    start: Tensor,
    loss: Loss,
    samples: Samples,
    rule: StepRule,
    *,
    steps: int,
    early_stop: bool = True,
    draws: int = 1,
    render: Render = as_given,
) -> Climbed:
    """Raise the loss of `render(x, p)` over p (B,...) from `start`, in `steps` steps of `rule`.

    The start and every iterate are judged, so that a sample that nothing fools costs steps + 1
    forwards and steps backwards, times `draws`: losses and gradients are means over that many
    passes, for models that answer at random, and such a sample is fooled when most of its passes
    are. With `early_stop` a sample leaves as soon as an iterate fools; without, it climbs on, and
    the answer is the fooling iterate of highest loss. No two samples touch each other. Losses of
    different steps are compared, so that a loss that changes with them has no place here.
    """
    result = Climbed.nowhere(start)
    now = Climbers(x, y, start)
    active = torch.arange(len(x), device=x.device)
    for done in range(steps + 1):
        if len(active) == 0:
            break
        now.learn(*_look(model, now, loss, samples, draws, render, last=done == steps))
        leaving = now.fooled if early_stop else torch.zeros_like(now.fooled)
        leaving = leaving | (done == steps)
        if bool(leaving.any()):
            answer = pick(now.fooled, now.found, now.best)
            reached = (answer, now.best, now.best_loss, now.fooled)
            result.put(active[leaving], *(each[leaving] for each in reached))
            active, samples = active[~leaving], samples.select(~leaving)
            now.keep(~leaving)
            rule.keep(~leaving)
        if len(active) > 0:
            now.p = rule.advance(now, done)
    return result


def _look(
    model: nn.Module,
    now: Climbers,
    loss: Loss,
    samples: Samples,
    draws: int,
    render: Render,
    *,
    last: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses (b,), who is fooled (b,) and gradients at `now.p`; none of the last, nobody moves."""
    p = now.p.detach().requires_grad_(not last)
    losses, gradient = torch.zeros_like(now.losses), torch.zeros_like(now.p)
    votes = torch.zeros(len(p), dtype=torch.int64, device=p.device)
    for _ in range(draws):
        with torch.set_grad_enabled(not last):
            each, fooled = loss.judged(model, render(now.x, p), now.y)
        if not last:
            gradient += torch.autograd.grad(each.sum(), p)[0]
        losses += each.detach() / draws
        votes += fooled
    samples.book(forwards=draws, backwards=0 if last else draws)
    losses = losses.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    return losses, 2 * votes > draws, (gradient / draws).nan_to_num()


class HalvingSteps(Rows):
    """The step rule of linf and l2: momentum (equation 1) and halved steps (section 3.2).

    A step begins at `first` and is halved at a checkpoint for the samples whose loss rose in at
    most `rho` of the steps since the last one (condition 1), or whose step was not halved there and
    whose best loss has not improved since (condition 2); they go on from their best point.

    `parity` counts as the authors' code does: the first step has raised the loss if that is above
    0, and any rise counts, rounding or not.
    """

    def __init__(
        self,
        start: Tensor,
        first: float,
        direction: Direction,
        project: Project,
        *,
        steps: int,
        rho: float = 0.75,
        momentum: float = 0.75,
        parity: bool = False,
    ) -> None:
        self._direction, self._project = direction, project
        self._rho, self._momentum, self._parity = rho, momentum, parity
        marks = pairwise([0, *checkpoints(steps)])
        self._windows = {mark: mark - before for before, mark in marks}
        self.size = start.new_full((len(start),), first)
        self.previous = start  # the parameter before the last step
        self.before = torch.zeros_like(self.size)  # its loss
        self.checked = self.size  # the best loss at the last checkpoint
        self.rises = torch.zeros_like(self.size)
        self.halved = torch.ones(len(start), dtype=torch.bool, device=start.device)

    def advance(self, now: Climbers, done: int) -> Tensor:
        if done == 0:
            self.checked = now.best_loss
        else:
            above = torch.gt if self._parity else exceeds
            self.rises = self.rises + above(now.losses, self.before)
        if done > 0 or not self._parity:
            self.before = now.losses
        if done in self._windows:
            stuck = self.rises <= self._rho * self._windows[done]
            stuck |= ~self.halved & ~exceeds(now.best_loss, self.checked)
            self.size = torch.where(stuck, self.size / 2, self.size)
            now.go_back(stuck)
            self.halved, self.checked = stuck, now.best_loss
            self.rises = torch.zeros_like(self.rises)
        return self._move(now, self._momentum if done > 0 else 1.0)

    def _move(self, now: Climbers, share: float) -> Tensor:
        step = per_sample(self.size, now.p) * self._direction(now.gradient)
        plain = self._project(now.x, now.p + step)
        drift = now.p - self.previous
        self.previous = now.p
        return self._project(now.x, now.p + share * (plain - now.p) + (1 - share) * drift)


def checkpoints(steps: int) -> list[int]:
    """After how many steps to review them: for 100 steps 22, 41, 57, 70, 80, 87, 93, 99.

    The first window is .22 of the steps, each later one .03 shorter, and none below .06; at least
    one step, in whole steps rounded down.
    """
    first, least, less = (max(percent * steps // 100, 1) for percent in (22, 6, 3))
    windows = (max(first - n * less, least) for n in range(steps))
    return [mark for mark in accumulate(windows) if mark <= steps]


def exceeds(losses: Tensor, others: Tensor) -> Tensor:
    """Which losses (b,...) are higher by more than rounding, that a batch's size may change."""
    slack = torch.finfo(losses.dtype).eps ** 0.75 * others.abs()
    return losses - others > torch.where(others.isfinite(), slack, torch.zeros_like(slack))


def pick(chosen: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """Row by row `one` (b,...) where chosen (b,) and `other` elsewhere."""
    return torch.where(per_sample(chosen, one), one, other)
