"""Decision boundaries taken for hyperplanes: which is nearest, and its nearest point in [0,1]."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..core import Loss, Samples


def linearise(
    model: nn.Module, x: Tensor, y: Tensor, classes: Tensor, samples: Samples
) -> tuple[Tensor, Tensor, Tensor]:
    """Who is fooled (B,) bool, margins (B,m) and their gradients (B,m,...) at images x (B,...).

    The margins are the logits of `classes` (B,m) less that of y (B,). One forward and m backward
    passes, which are booked. What is NaN in a gradient counts as zero.
    """
    x = x.detach().requires_grad_()
    logits = model(x)
    margins = logits.gather(1, classes) - logits.gather(1, y[:, None])
    count = classes.shape[1]
    gradients = [
        torch.autograd.grad(margins[:, k].sum(), x, retain_graph=k < count - 1)[0].nan_to_num()
        for k in range(count)
    ]
    samples.book(forwards=1, backwards=count)
    fooled = logits.detach().argmax(1) != y
    return fooled, margins.detach().nan_to_num(), torch.stack(gradients, 1)


def nearest_plane(margins: Tensor, gradients: Tensor, norm: str) -> tuple[Tensor, Tensor]:
    """Margin (B,) and gradient (B,...) of the class whose linearised boundary is the nearest.

    The distance, in `norm`, is |margin| over the dual norm of the gradient.
    """
    if margins.shape[1] == 1:
        return margins[:, 0], gradients[:, 0]
    distance = margins.abs() / dual_size(gradients.flatten(2), norm)
    rows, chosen = torch.arange(len(margins), device=margins.device), distance.argmin(1)
    return margins[rows, chosen], gradients[rows, chosen]


def dual_size(gradients: Tensor, norm: str) -> Tensor:
    """Sizes of gradients (...,n) in the norm dual to `norm` (linf, l2 or l1), never quite zero."""
    order = {"linf": 1, "l2": 2, "l1": torch.inf}[norm]
    size: Tensor = torch.linalg.vector_norm(gradients, order, dim=-1)
    return size.clamp_min(torch.finfo(gradients.dtype).tiny)


def missing_budgets(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    budget: float,
    norm: str,
    margin: Loss,
    samples: Samples,
) -> Tensor:
    """How many further budgets it takes, to first order, to fool a frozen model from x (B,...).

    Shape (B,): how far the `margin` is below 0, over the dual norm of its gradient, in budgets;
    itself below 0 where x fools, huge where there is no gradient.
    """
    at = x.detach().requires_grad_()
    lead = margin(model, at, y)  # of the likeliest wrong class over the right one
    (gradient,) = torch.autograd.grad(lead.sum(), at)
    samples.book(forwards=1, backwards=1)
    slope = dual_size(gradient.nan_to_num().flatten(1), norm)
    missing: Tensor = -lead.detach() / (budget * slope).clamp_min(1e-30)
    return missing


def to_hyperplane(x: Tensor, normal: Tensor, gap: Tensor, norm: str) -> Tensor:
    """The smallest d (B,...) in linf, l2 or l1 with <normal, d> = gap (B,) and x + d in [0,1].

    Where the hyperplane does not meet the box, the d that comes nearest to meeting it. Exact up to
    rounding (Croce & Hein 2020, arXiv 1907.02044, section 2.2 and appendix A).
    """
    weight = normal.flatten(1)
    # In units of the largest entry: the squares of a confident model's gradient may underflow.
    largest = weight.abs().amax(1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    towards = weight.sign() * gap.sign()[:, None]
    weight, gap = weight.abs() / largest, gap.abs() / largest[:, 0]
    flat = x.flatten(1)
    room = torch.where(towards > 0, 1 - flat, flat)
    if norm == "linf":
        length = _level(weight, weight * room, room, gap)
    elif norm == "l2":
        limit = room / weight.clamp_min(torch.finfo(x.dtype).tiny)
        length = weight * _level(weight.square(), weight * room, limit, gap)
        length = torch.minimum(length, room)
    elif norm == "l1":
        length = _fill(weight, room, gap)
    else:
        raise ValueError(f"no hyperplane is met in the norm {norm}")
    return (towards * length).view_as(x)


def _level(weight: Tensor, reach: Tensor, limit: Tensor, gap: Tensor) -> Tensor:
    """min(level, limit) (B,n) for the level at which sum(weight * min(level, limit)) = gap (B,).

    `reach` is weight * limit. The level is guessed as if no entry ended at its limit, and again
    with those that do set aside, until there are no more: every guess is too low, so none is set
    aside wrongly, and since each sets aside at least one the guesses end; in practice after a few.
    """
    tiny = torch.finfo(weight.dtype).tiny
    ended = torch.zeros_like(weight, dtype=torch.bool)
    level = gap
    for _ in range(weight.shape[1] + 1):
        left = gap - reach.masked_fill(~ended, 0).sum(1)
        level = left / weight.masked_fill(ended, 0).sum(1).clamp_min(tiny)
        more = (limit <= level[:, None]) & ~ended
        if not bool(more.any()):
            break
        ended |= more
    return torch.where(ended, limit, level.clamp_min(0)[:, None])


def _fill(weight: Tensor, room: Tensor, gap: Tensor) -> Tensor:
    """Lengths (B,n) that take all the room, by falling weight, until the gap (B,) is closed."""
    order = weight.argsort(1, descending=True)
    weight, room = weight.gather(1, order), room.gather(1, order)
    reach = weight * room
    before = reach.cumsum(1) - reach
    left = (gap[:, None] - before).clamp_min(0)
    length = torch.minimum(left / weight.clamp_min(torch.finfo(weight.dtype).tiny), room)
    return torch.empty_like(length).scatter_(1, order, length)
