"""Two ways to the gradient of input-gradient penalties in the weights, and when to go them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..core import Loss, UserError
from ..fields import check_ranges, flag
from .base import Penalty
from .weights import Gradients, Moment, accumulate, add_to_grad, filled

Weighted = tuple[Penalty, float]
NO_SECOND = (
    "a layer of the model has no second derivative, which exact penalties need: train with "
    "--penalty_mode finite_difference"
)


@dataclass(frozen=True)
class PenaltyMode:
    """How the penalties' gradient in the weights is found.

    `exact` is double backpropagation (Drucker & Le Cun 1992). `finite_difference` takes the
    difference of two ordinary gradients instead (see `by_differences`): less memory, and no second
    derivative is asked of any layer. `lazy` is exact, but only at every `lazy_steps`-th batch, with
    `lazy_steps` times the weight (Karras et al. 2020, arXiv 1912.04958): the mean over as many
    batches is the same to first order in the learning rate.
    """

    penalty_mode: Literal["exact", "finite_difference", "lazy"] = flag(
        "exact",
        "penalties: by double backpropagation, by a difference of gradients, or at some steps only",
    )
    lazy_steps: int = flag(
        4, "lazy penalties: taken at every so many steps, at so many times the weight", at_least=1
    )
    difference_step: float = flag(
        0.02,
        "finite_difference: how far the images' numbers, of [0,1], are moved at most; 0.05 suits "
        "the flow gradient in bf16",
        above=0,
    )

    def __post_init__(self) -> None:
        """Raise UserError for the first number out of its range."""
        check_ranges(self)

    @property
    def label(self) -> str:
        """Its part of a folder's name; empty for exact penalties."""
        names = {"exact": "", "finite_difference": "fd", "lazy": f"lazy{self.lazy_steps}"}
        return names[self.penalty_mode]

    def factor(self, epoch: float, batches: int | None) -> float:
        """What weights are multiplied by once `epoch` epochs, each of so many batches, are done.

        Raises ValueError where penalties are lazy and the batches cannot be counted.
        """
        if self.penalty_mode != "lazy":
            return 1.0
        if batches is None or not math.isfinite(epoch):
            raise ValueError("lazy penalties need the batches of an epoch, and objective.at(epoch)")
        return float(self.lazy_steps) if round(epoch * batches) % self.lazy_steps == 0 else 0.0


def by_double_backward(
    weighted: Sequence[Weighted], model: nn.Module, x: Tensor, y: Tensor, loss: Loss
) -> dict[str, Tensor]:
    """Add the exact gradient of loss and penalties to `.grad`; returns the means to log.

    One forward pass, one backward pass to the images and one through both; more only where a
    penalty edits its own gradient, which is then taken apart from the rest. Raises UserError for a
    layer that is marked as having no second derivative.
    """
    x = x.detach().requires_grad_()
    losses = loss(model, x, y)
    (gradient,) = torch.autograd.grad(losses.sum(), x, create_graph=True)
    _check_twice_differentiable(gradient)
    means = [penalty(gradient, x.detach()).mean() for penalty, _ in weighted]
    terms = [weight * mean for (_, weight), mean in zip(weighted, means, strict=True)]
    edits = {penalty.edits for penalty, _ in weighted}
    apart = "always" in edits
    if not apart:
        total = sum(terms, start=losses.mean())
        gradients = _gradients(total, model, retain_graph="non_finite" in edits)
        apart = "non_finite" in edits and not _finite(gradients)
    if apart:
        gradients = _gradients(losses.mean(), model, retain_graph=True)
        for (penalty, _), term in zip(weighted, terms, strict=True):
            own = _gradients(term, model, retain_graph=True)
            accumulate(gradients, _edited(penalty, own), 1)
    add_to_grad(gradients)
    return _log(losses, weighted, means)


def by_differences(
    weighted: Sequence[Weighted], step: float, model: nn.Module, x: Tensor, y: Tensor, loss: Loss
) -> dict[str, Tensor]:
    """Add loss and penalties' gradient to `.grad`, that of the penalties by finite differences.

    With g_i = dL_i/dx_i, v_i = d(sum_k w_k P_k)/dg_i and L the mean loss, the penalties' gradient
    in theta is the derivative of dL/dtheta as all images move along v. It is taken over a distance
    (for input gradients: Finlay & Oberman 2019, arXiv 1905.11468):

        (dL/dtheta at x + h v, less dL/dtheta at x) / h,    h = step / max |v|,

    the maximum being over all numbers of all images, so that none of them, which lie in [0,1],
    moves by more than `step` (some leave [0,1] by as much). The error falls with `step`, and
    rounding grows with its inverse; across kinks, as of ReLU, the difference also sees the bend,
    which the exact gradient does not.

    Two forward and two backward passes: the first give the losses and their gradients in theta and
    x, the second are at the moved images; each graph is gone before the next. A penalty that always
    edits its own gradient has second passes to itself.

    h is one for the batch. With one a sample, the gradients could not be put together once they
    are summed over the samples, and what one sample's penalty owes to another through batch
    statistics would be weighed wrongly. So who else is in the batch matters no more than `step`
    does, and not at all where max |v| is the same for every sample (l1, GPM).

    The second pass draws what the first drew (dropout), and leaves the buffers as the first did
    (statistics of batch norms); in training mode it normalises by the moved batch's statistics, as
    the exact gradient's are. It is finite where ordinary gradients are.
    """
    apart = any(penalty.edits == "always" for penalty, _ in weighted)
    groups = [[w] for w in weighted] if apart else [weighted]
    moments = [Moment.of(model, x.device) for _ in groups]
    x = x.detach().requires_grad_()
    losses = loss(model, x, y)
    here = _gradients(losses.mean(), model, x)
    slopes, x = (len(x) * here.pop(x)).requires_grad_(), x.detach()
    penalised: Gradients = {}
    means = []
    for group, moment in zip(groups, moments, strict=True):
        values = [penalty(slopes, x) for penalty, _ in group]
        means += [value.mean() for value in values]
        priced = [weight * value.sum() for (_, weight), value in zip(group, values, strict=True)]
        (v,) = torch.autograd.grad(torch.stack(priced).sum(), slopes)
        inverse_h = v.abs().max() / step
        with moment.again():
            moved = x + v / inverse_h.clamp_min(torch.finfo(v.dtype).tiny)
            there = _gradients(loss(model, moved, y).mean(), model)
        own = _difference(there, here, inverse_h)
        accumulate(penalised, _edited(group[0][0], own) if apart else own, 1)
    add_to_grad(here)
    add_to_grad(penalised)
    return _log(losses, weighted, means)


def _difference(there: Gradients, here: Gradients, factor: Tensor) -> Gradients:
    """The change from `here` to `there` times the factor, in the memory of `there`."""
    for p, gradient in here.items():
        there[p] = there[p].sub_(gradient) if p in there else -gradient
    return {p: difference.mul_(factor) for p, difference in there.items()}


def _gradients(
    scalar: Tensor, model: nn.Module, *others: Tensor, retain_graph: bool = False
) -> Gradients:
    """Of each parameter, and of the tensors `others`, that `scalar` depends on."""
    wanted = [*(p for p in model.parameters() if p.requires_grad), *others]
    if not scalar.requires_grad:
        return {}

    def fill() -> None:
        try:
            scalar.backward(retain_graph=retain_graph, inputs=wanted)  # type: ignore[no-untyped-call]
        except RuntimeError as error:  # torch has no formula, as for hard sigmoids
            if "derivative for" not in str(error) or "_scaled_dot_product" in str(error):
                raise
            raise UserError(NO_SECOND) from error

    return filled(wanted, fill)[0]


def _check_twice_differentiable(gradient: Tensor) -> None:
    """Raise UserError if a part of the gradient's graph has been cut off.

    Where a layer's backward pass is marked `once_differentiable`, the graph ends in an error that
    autograd never meets on its way to the weights: what lies behind would be missing in silence.
    """
    nodes, seen = [gradient.grad_fn], {gradient.grad_fn}
    while nodes:
        node = nodes.pop()
        if node is not None and type(node).__name__ == "Error":
            raise UserError(NO_SECOND)
        following = {n for n, _ in node.next_functions} - seen if node is not None else set()
        seen |= following
        nodes += following


def _edited(penalty: Penalty, gradients: Gradients) -> Gradients:
    return dict(zip(gradients, penalty.edited(list(gradients.values())), strict=True))


def _finite(gradients: Gradients) -> bool:
    return all(torch.stack([g.isfinite().all() for g in gradients.values()]).tolist())


def _log(
    losses: Tensor, weighted: Sequence[Weighted], means: Sequence[Tensor]
) -> dict[str, Tensor]:
    logged = {p.tag: mean.detach() for (p, _), mean in zip(weighted, means, strict=True)}
    return {"loss": losses.detach().mean(), **logged}
