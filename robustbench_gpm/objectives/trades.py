"""TRADES (Zhang et al. 2019, arXiv 1901.08573, equation 5): robustness as likeness to clean images.

mean_i L(x_i, y_i) + beta * mean_i max_{x'_i} KL(p(x_i) || p(x'_i)), x'_i within budget of x_i.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn

from ..attacks import Attack, raises_any_loss
from ..attacks.geometry import project
from ..attacks.pgd import PGD
from ..core import Loss, Samples, UserError, frozen
from .attacked import fresh_samples
from .base import Objective
from .rows import FirstNotes, rows_of
from .weights import Moment

START = 0.001  # standard deviation of the noise that the search for x' sets out with


@dataclass(frozen=True)
class Trades:
    """`inner` at the clean images, with beta * KL(p(x) || p(x')) added to each sample's loss.

    So whatever is put around a loss acts on both terms. Penalties are taken of the first alone:
    they are, as elsewhere, functions of the gradient of the task's own loss at the clean images, or
    where a penalty has moved these; the divergence is from what was clean before.

    x' is found on the model in evaluation mode. The loss then makes two passes in the model's own
    mode, one over the clean and one over the attacked images: batch norms normalise each by its own
    statistics, and update their running statistics once by either. (The authors' code passes the
    clean images twice, and so counts them twice.)

    Only for models that give class logits (B,K); UserError otherwise.
    """

    attack: Attack
    budget: float
    beta: float
    inner: Objective

    def backward(self, model: nn.Module, x: Tensor, y: Tensor, loss: Loss) -> dict[str, Tensor]:
        """See `Objective.backward`; logs what the inner objective does, and the mean KL as `kl`."""
        if self.beta == 0:
            return self.inner.backward(model, x, y, loss)
        attacked = self.attacked(model, x, y, loss)
        traded = TradedLoss(loss, y, x, attacked, self.beta, FirstNotes.like(x[:, 0, 0, 0]))
        log = self.inner.backward(model, x, rows_of(x), traded)
        return {**log, "kl": traded.divergences.values.mean()}

    def at(self, epoch: float) -> Trades:
        return replace(self, inner=self.inner.at(epoch))

    def attacked(self, model: nn.Module, x: Tensor, y: Tensor, loss: Loss) -> Tensor:
        """The images x' (B,C,H,W) found for x.

        At x itself the divergence has no slope. PGD sets out from x plus noise, as the authors'
        code does; another attack is made on x plus noise, and what it finds there is laid on x.
        """
        samples, diverging = fresh_samples(x), Divergence(loss)
        with torch.no_grad(), frozen(model):
            _, logits = with_logits(loss, model, x, y)
        samples.book(forwards=1)
        clean = logits.log_softmax(1)
        if isinstance(self.attack, PGD):
            near = NearbyPGD.like(self.attack)
            return near(model, x, clean, budget=self.budget, loss=diverging, samples=samples)
        found = self.attack.find(
            model, _nudged(x, samples), clean, budget=self.budget, loss=diverging, samples=samples
        )
        return self.attack.drawn_in(x, found, self.budget).images


@dataclass(frozen=True)
class NearbyPGD(PGD):
    """PGD whose random start is close by the image instead of anywhere in the ball."""

    @classmethod
    def like(cls, attack: PGD) -> NearbyPGD:
        """The same attack but for its start."""
        given = {field.name: getattr(attack, field.name) for field in fields(attack)}
        return cls(**{**given, "random_start": True})

    def start(self, x: Tensor, budget: float, samples: Samples) -> Tensor:
        return project(x, _nudged(x, samples), budget, self.norm)


@dataclass(frozen=True)
class Divergence:
    """KL(p || p(x)), a loss whose labels are the logarithms (B,K) of class probabilities p.

    The logits are those of the pass that `inner` makes, and so have its precision.
    """

    inner: Loss

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        _, logits = with_logits(self.inner, model, x, y.argmax(1))
        return divergence(y, logits)

    def judged(self, model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Losses (B,), and whose likeliest class is not p's."""
        likeliest = y.argmax(1)
        _, logits = with_logits(self.inner, model, x, likeliest)
        return divergence(y, logits), logits.detach().argmax(1) != likeliest


@dataclass(frozen=True)
class TradedLoss:
    """`inner` plus beta * KL(p(clean) || p(attacked)); its labels are rows of the batch (rows.py).

    The images it is called with concern `inner` alone. Where they are `clean` (B,C,H,W) and nobody
    differentiates by them, both terms share their pass; else the divergence makes the same pass
    again, with the same draws, on the clean images. `divergences` are those (B,) of the first call.
    """

    inner: Loss
    y: Tensor
    clean: Tensor
    attacked: Tensor
    beta: float
    divergences: FirstNotes

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        labels, clean, moment = self.y[y], self.clean[y], Moment.of(model, x.device)
        losses, logits = with_logits(self.inner, model, x, labels)
        if x.requires_grad or not torch.equal(x, clean):
            with moment.again():
                _, logits = with_logits(self.inner, model, clean, labels)
        _, attacked = with_logits(self.inner, model, self.attacked[y], labels)
        divergences = divergence(logits.log_softmax(1), attacked)
        self.divergences.note(y, divergences.to(self.divergences.values))
        return losses + self.beta * divergences

    def judged(self, model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The losses, and whom x fools, for one pass more."""
        return self(model, x, y), self.inner.judged(model, x, self.y[y])[1]


def divergence(log_p: Tensor, logits: Tensor) -> Tensor:
    """KL(p || softmax(logits)) in nats, shape (B,), from log p and logits, both (B,K)."""
    return (log_p.exp() * (log_p - logits.log_softmax(1))).sum(1)


def with_logits(loss: Loss, model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Losses (B,) and, from the same forward pass, the logits (B,K) that the model gave.

    Raises UserError for a model that gives anything else.
    """
    seen: list[Tensor] = []
    handle = model.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    try:
        losses = loss(model, x, y)
    finally:
        handle.remove()
    if len(seen) != 1 or not isinstance(seen[0], Tensor) or seen[0].dim() != 2:
        raise UserError(
            "TRADES compares probabilities of classes, and so is for classification only: choose "
            "another --adversarial, such as pgd"
        )
    return losses, seen[0].to(losses.dtype)


def check_raises_any_loss(name: str, attack: Attack) -> None:
    """Raise UserError for an attack that does not raise the divergence when it is asked to."""
    if not (raises_any_loss(attack) and attack.shrinks):
        raise UserError(
            f"TRADES needs an attack that raises the divergence, which {name} does not: choose "
            "another --adversarial_attack, such as pgd or flow-pgd"
        )


def _nudged(x: Tensor, samples: Samples) -> Tensor:
    return (x + START * samples.normal(x)).clamp(0, 1)
