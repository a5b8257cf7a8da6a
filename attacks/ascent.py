"""What first-order attacks share: gradient steps, and further searches, on whom none fooled yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..core import Loss, Samples, ends, loss_at

Render = Callable[[Tensor, Tensor], Tensor]  # (images x, parameter p) -> perturbed images
Step = Callable[[Tensor, Tensor, Tensor], Tensor]  # (images x, parameter p, gradient) -> next p
Cost = Callable[[Tensor], Tensor]  # parameter p (B,...) -> what it costs, (B,)
Search = Callable[[Tensor, Tensor, Tensor, Samples], Tensor]  # (x, y, p so far, samples) -> p


def as_given(_: Tensor, adversarial: Tensor) -> Tensor:
    """The perturbed images are themselves the parameter."""
    return adversarial


def judged(
    model: nn.Module, x: Tensor, y: Tensor, loss: Loss, samples: Samples
) -> tuple[Tensor, Tensor]:
    """Losses (B,) and who is fooled (B,), from one forward pass that is booked."""
    with torch.no_grad():
        verdict = loss.judged(model, x, y)
    samples.book(forwards=1)
    return verdict


def rivals(model: nn.Module, x: Tensor, y: Tensor, samples: Samples) -> tuple[Tensor, Tensor]:
    """Logits (B,K) and the wrong classes (B,K-1) by falling logit, from one booked forward pass."""
    with torch.no_grad():
        logits: Tensor = model(x)
    samples.book(forwards=1)
    wrong = logits.scatter(1, y[:, None], -torch.inf)
    return logits, wrong.argsort(dim=1, descending=True, stable=True)[:, :-1]


def ascend(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    start: Tensor,
    loss: Loss,
    samples: Samples,
    *,
    steps: int,
    render: Render,
    step: Step,
    early_stop: bool,
    cost: Cost | None = None,
) -> Tensor:
    """Raise the loss of `render(x, p)`, less the `cost` of p, over p (B,...) in `steps` steps.

    With `early_stop` a sample leaves the batch as soon as an iterate fools the model, and that
    iterate is its answer: at least as strong as the last iterate, and cheaper with every sample
    fooled. What the last step leads to is not judged here: whoever asked for the attack does that.
    A loss that changes in the course of an attack (`core.Scheduled`) is asked at each step.

    A NaN in a gradient counts as zero and an infinity as the largest number, so that a model whose
    gradient overflows at some pixels is attacked at the others, and no iterate can turn NaN.
    """
    found = start.clone()
    active = torch.arange(len(x), device=x.device)
    p = start
    for turn in range(steps):
        p = p.detach().requires_grad_()
        losses, fooled = loss_at(loss, turn + 1, steps).judged(model, render(x, p), y)
        total = losses.sum() if cost is None else losses.sum() - cost(p).sum()
        (gradient,) = torch.autograd.grad(total, p)
        samples.book(forwards=1, backwards=1)
        p = p.detach()
        if early_stop and bool(fooled.any()):
            found[active[fooled]] = p[fooled]
            keep = ~fooled
            active, samples = active[keep], samples.select(keep)
            x, y, p, gradient = x[keep], y[keep], p[keep], gradient[keep]
            if len(active) == 0:
                return found
        p = step(x, p, gradient.nan_to_num())
    found[active] = p
    return found


def in_turn(
    searches: Sequence[Search],
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    start: Tensor,
    loss: Loss,
    samples: Samples,
    *,
    render: Render,
) -> Tensor:
    """Make each search on the samples that the searches before it left standing.

    The first gets `start` (B,...), each later one what the one before it found. A parameter that
    fools the model is never given up for another. Where nobody counts as fooled, the parameter of
    highest loss is kept.
    """
    if len(searches) > 1 and not ends(loss):
        return _highest(searches, model, x, y, start, loss, samples, render)
    found, p = start.clone(), start
    standing = torch.arange(len(x), device=x.device)
    for turn, search in enumerate(searches):
        if turn > 0:
            _, fooled = judged(model, render(x, p), y, loss, samples)
            keep = ~fooled
            if not bool(keep.any()):
                break
            standing, samples = standing[keep], samples.select(keep)
            x, y, p = x[keep], y[keep], p[keep]
        p = search(x, y, p, samples)
        found[standing] = p
    return found


def _highest(
    searches: Sequence[Search],
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    start: Tensor,
    loss: Loss,
    samples: Samples,
    render: Render,
) -> Tensor:
    found = p = searches[0](x, y, start, samples)
    best, _ = judged(model, render(x, p), y, loss, samples)
    for search in searches[1:]:
        p = search(x, y, p, samples)
        losses, _ = judged(model, render(x, p), y, loss, samples)
        higher = losses > best
        best = torch.where(higher, losses, best)
        found = torch.where(higher.view(-1, *[1] * (p.dim() - 1)), p, found)
    return found
