"""The mean loss plus any number of input-gradient penalties, by double backpropagation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..core import Loss
from .base import Penalty


@dataclass(frozen=True)
class Penalised:
    """mean_i L_i + sum_k w_k mean_i P_k(dL_i/dx_i); without penalties, the baseline.

    All penalties share one forward pass and one backward pass to the input.
    """

    penalties: tuple[Penalty, ...] = ()

    def backward(self, model: nn.Module, x: Tensor, y: Tensor, loss: Loss) -> dict[str, Tensor]:
        """See `Objective.backward`; logs the loss and each penalty before its weight."""
        for penalty in self.penalties:
            x = penalty.prepare(x)
        if not self.penalties:
            mean_loss = loss(model, x, y).mean()
            mean_loss.backward()  # type: ignore[no-untyped-call]
            return {"loss": mean_loss.detach()}
        x = x.detach().requires_grad_()
        losses = loss(model, x, y)
        (gradient,) = torch.autograd.grad(losses.sum(), x, create_graph=True)
        total = losses.mean()
        log = {"loss": total.detach()}
        for penalty in self.penalties:
            mean_penalty = penalty(gradient, x.detach()).mean()
            total = total + penalty.weight * mean_penalty
            log[penalty.tag] = mean_penalty.detach()
        # Only the weights: a gradient left on x would be work for nobody.
        parameters = [p for p in model.parameters() if p.requires_grad]
        total.backward(inputs=parameters)  # type: ignore[no-untyped-call]
        return log
