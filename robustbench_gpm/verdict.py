"""One attack on one batch, and the verdict that counts: the model's own, in float32.

Attacks search on faster copies of the model. Where a copy was fooled and the model is not, the
search is made again on the next, more faithful one, and last on the model itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .attacks import Attack
from .attacks.hyperplane import missing_budgets
from .attacks.perturbed import Perturbed
from .core import Samples, frozen
from .tasks import Classification

SLACK = 1e-5  # what float32 arithmetic may add to a perturbation's size


@dataclass
class Attempt:
    """What an attack made of a batch, and what the model says to it.

    label and confidence (B,) are the model's; size (B,) is the perturbation's in the unit of the
    threat.
    """

    found: Perturbed
    label: Tensor
    confidence: Tensor
    size: Tensor

    def put(self, where: Tensor, other: Attempt) -> None:
        """Take over the other attempt's outcome for the samples that `where` (B,) marks."""
        self.found.put(where, other.found)
        for name in ("label", "confidence", "size"):
            getattr(self, name)[where] = getattr(other, name)

    def select(self, where: Tensor) -> Attempt:
        """The outcome for the samples that `where` picks."""
        parts = (self.label, self.confidence, self.size)
        return Attempt(self.found.select(where), *(part[where] for part in parts))


class Verifier:
    """Runs attacks on copies of a model, and has the model itself judge what they found."""

    def __init__(self, model: nn.Module, copies: Sequence[nn.Module], task: Classification) -> None:
        """`copies` are for the search, the fastest first."""
        self.model, self.task = model, task
        self.ladder = [*copies, model]

    def judge(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The verdict that counts: classes and confidences (B,) by the model itself."""
        return self._predict(self.model, x)

    def attempt(
        self, attack: Attack, budget: float, x: Tensor, y: Tensor, samples: Samples
    ) -> Attempt:
        """Attack images x (B,C,H,W) with labels y (B,) at one budget, and have the outcome judged.

        Every pass is booked on `samples`. Raises RuntimeError for an attack outside its budget.
        """
        # A nearest image lies at the boundary, where bfloat16 cannot tell one side from the other.
        searched = self.ladder
        if attack.minimum_norm:
            searched = [copy for copy in searched if not getattr(copy, "coarse", False)]
        outcome = self._once(searched[0], attack, budget, x, y, samples)
        for used, faithful in itertools.pairwise(searched):
            doubtful = self._unconfirmed(used, outcome, y, samples)
            if not bool(doubtful.any()):
                break
            part = samples.select(doubtful)
            again = self._once(faithful, attack, budget, x[doubtful], y[doubtful], part)
            outcome.put(doubtful, again)
        return outcome

    def drawn_in(
        self, attack: Attack, budgets: Tensor, x: Tensor, found: Attempt, samples: Samples
    ) -> Attempt:
        """The same perturbations, each drawn back into a smaller budget (B,), and judged."""
        return self._judged(attack, attack.drawn_in(x, found.found, budgets), samples)

    def missing(
        self, attack: Attack, budget: float, images: Tensor, y: Tensor, samples: Samples
    ) -> Tensor:
        """How many further budgets it takes, to first order, to fool the model from these images.

        Shape (B,); linf and l2 only.
        """
        if len(images) == 0:
            return images.new_zeros(0)
        model, margin = self.ladder[0], self.task.attack_loss("margin")
        with frozen(model), torch.enable_grad():
            return missing_budgets(model, images, y, budget, attack.threat.name, margin, samples)

    def _once(
        self,
        model: nn.Module,
        attack: Attack,
        budget: float,
        x: Tensor,
        y: Tensor,
        samples: Samples,
    ) -> Attempt:
        loss = self.task.attack_loss(attack.loss_name)
        found = attack.find(model, x, y, budget=budget, loss=loss, samples=samples)
        outcome = self._judged(attack, found, samples)
        if not attack.minimum_norm:
            check_kept_word(attack, budget, outcome.found.images, outcome.size)
        return outcome

    def _judged(self, attack: Attack, found: Perturbed, samples: Samples) -> Attempt:
        label, confidence = self.judge(found.images)
        samples.book(forwards=1)
        return Attempt(found, label, confidence, attack.size(found))

    def _unconfirmed(
        self, copy: nn.Module, outcome: Attempt, y: Tensor, samples: Samples
    ) -> Tensor:
        """Samples that the copy takes for fooled and the model itself does not, (B,) bool."""
        doubtful = torch.zeros_like(outcome.label, dtype=torch.bool)
        standing = outcome.label == y
        if bool(standing.any()):
            claimed, _ = self._predict(copy, outcome.found.images[standing])
            samples.select(standing).book(forwards=1)
            doubtful[standing] = claimed != y[standing]
        return doubtful

    def _predict(self, model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        with frozen(model):
            return self.task.predict(model, x)


def check_kept_word(attack: Attack, budget: float, images: Tensor, sizes: Tensor) -> None:
    """Raise RuntimeError for images (B,C,H,W) or sizes (B,) that are outside what was allowed."""
    if len(images) == 0:
        return
    size = float(sizes.max())
    inside = float(images.min()) >= 0 and float(images.max()) <= 1
    if not inside or not size <= budget * (1 + SLACK) + SLACK:
        raise RuntimeError(
            f"{attack} broke its word: a perturbation of {size} for a budget of {budget}, "
            f"images {'inside' if inside else 'outside'} [0,1]"
        )
