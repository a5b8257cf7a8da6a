"""Spatially transformed adversarial examples (Xiao et al. 2018, arXiv 1801.02612), bounded."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor, nn

from ..core import Loss, Samples
from ..deformation import identity_flow
from ..losses import cross_entropy, margin
from .any_loss import AnyLoss
from .ascent import ascend, in_turn
from .climb import pick
from .flow_vertex import FlowVertex
from .priced import PricedFlow
from .smoothness import smoothness

DECAY_1, DECAY_2, TINY = 0.9, 0.999, 1e-12  # of Adam (arXiv 1412.6980)


@dataclass(frozen=True)
class StAdv(AnyLoss, PricedFlow):
    """Minimise the right logit's lead + tau * smoothness over flows, all images at once.

    Equations 3 to 5 of the paper, untargeted, with kappa = 0: the lead is z_y - max_{i != y} z_i,
    and a sample is done as soon as that is negative (there the paper's hinge would begin). `tau` is
    the price of smoothness for flows in pixels, as in the paper. `steps` of Adam from rest.

    `over` says what a budget is. With `bound` no pixel moves further than the budget, the flow is
    clamped to it after each step, and a step is `rate` budgets. Smoothness leaves some samples
    standing that a rough flow of the same size fools, so a bounded attack that stopped here would
    flatter the model: on those, `finish` steps of FlowVertex follow. They raise the cross-entropy
    where `loss` is the margin, which sees a single rival class and gets stuck sooner; any other
    loss as it is.
    With `tau` the budget is 1/tau in place of the field, nothing bounds the flow, and a step is
    `rate` pixels.

    `polish` more steps of Adam smooth what fooled: the smoothest flow met that fools is returned.
    The paper's own optimisation, one image at a time and smooth to the end, is `StAdvLBFGS`.
    """

    steps: int = 10
    rate: float = 0.125
    finish: int = 20
    polish: int | None = None

    def deform(
        self, model: nn.Module, x: Tensor, y: Tensor, budget: float, loss: Loss, samples: Samples
    ) -> Tensor:
        if budget == 0:
            return identity_flow(x)
        bound, tau = self.terms(budget)
        rate = self.rate * (bound if math.isfinite(bound) else 1)

        def smooth(x: Tensor, y: Tensor, flow: Tensor, samples: Samples) -> Tensor:
            return ascend(
                model,
                x,
                y,
                with_moments(flow),
                loss,
                samples,
                steps=self.steps,
                render=lambda x, state: self.render(x, state[:, 0]),
                step=adam(rate, bound),
                early_stop=True,
                cost=lambda state: tau * smoothness(state[:, 0], self.neighbours),
            )[:, 0]

        def rough(x: Tensor, y: Tensor, _: Tensor, samples: Samples) -> Tensor:
            return finish.deform(model, x, y, budget, raised, samples)

        finish = FlowVertex(padding=self.padding, steps=self.finish)
        raised = cross_entropy if loss == margin else loss
        searches = (smooth, rough) if self.over == "bound" else (smooth,)
        start = identity_flow(x)
        flow = in_turn(searches, model, x, y, start, loss, samples, render=self.render)
        return self._polished(model, x, y, flow, rate / 4, bound, loss, samples)

    def _polished(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        flow: Tensor,
        rate: float,
        bound: float,
        loss: Loss,
        samples: Samples,
    ) -> Tensor:
        """The smoothest fooling flows on `polish` steps from `flow`; those that do not fool, as is.

        Smoothness alone is lowered where the flow fools, and the lead where it no longer does.
        """
        if self.polish is None:
            return flow
        best, least = flow, torch.full_like(flow[:, 0, 0, 0], torch.inf)
        step, state = adam(rate, bound), with_moments(flow)
        for _ in range(self.polish + 1):
            state = state.detach().requires_grad_()
            losses, fooled = loss.judged(model, self.render(x, state[:, 0]), y)
            rough = smoothness(state[:, 0], self.neighbours)
            (gradient,) = torch.autograd.grad((losses * ~fooled - self.tau * rough).sum(), state)
            samples.book(forwards=1, backwards=1)
            smoother = fooled & (rough.detach() < least)
            best = pick(smoother, state.detach()[:, 0], best)
            least = torch.where(smoother, rough.detach(), least)
            state = step(x, state.detach(), gradient.nan_to_num())
        return best


def with_moments(flow: Tensor) -> Tensor:
    """The state (B,3,2,H,W) that `adam` starts with."""
    return torch.stack((flow, torch.zeros_like(flow), torch.zeros_like(flow)), dim=1)


def adam(rate: float, budget: float) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Adam's step for `ascend`, clamped to the budget, in the flow's unit.

    The parameter (B,3,2,H,W) is the flow with its two running moments, so that they leave the batch
    with the sample they belong to.
    """
    turns = count(1)

    def step(_: Tensor, state: Tensor, gradient: Tensor) -> Tensor:
        turn = next(turns)
        flow, first, second = state.unbind(1)
        slope = gradient[:, 0]
        first = DECAY_1 * first + (1 - DECAY_1) * slope
        second = DECAY_2 * second + (1 - DECAY_2) * slope.square()
        mean = first / (1 - DECAY_1**turn)
        spread = (second / (1 - DECAY_2**turn)).sqrt()
        moved = (flow + rate * mean / (spread + TINY)).clamp(-budget, budget)
        return torch.stack((moved, first, second), dim=1)

    return step
