"""Losses of detectors, one number an image: what attacks raise and training lowers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..core import Loss, Table, UserError
from .detection_metric import quality

FOOLED_BELOW = 0.5  # of an image's quality


@dataclass(frozen=True)
class DetectionLoss:
    """A `core.Loss` made of a detector's own losses, `model(x, y) -> dict` of tensors (B,).

    `parts` names those that are added up; without any it is all of them, and of those in `maybe`
    the ones that the model has. `sign` is -1 for what an attack is to lower. With `boxless` the
    labels are taken away first: the loss is then that of finding anything at all.

    An image is fooled where its quality, the F1 of `detection_metric.quality` against the true
    labels, is below 0.5: where less than half of what is there and what is claimed goes together.
    """

    name: str
    parts: tuple[str, ...] = ()
    maybe: tuple[str, ...] = ()
    sign: int = 1
    boxless: bool = False

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Losses (B,) for images x (B,C,H,W) and labels y (B,M,5).

        Raises UserError where the model has no such part, or none of those it may have.
        """
        losses = model(x, torch.full_like(y, -1) if self.boxless else y)
        chosen = self.parts or tuple(
            part for part in losses if part in self.maybe or not self.maybe
        )
        missing = set(chosen or self.maybe) - set(losses)
        if missing:
            raise UserError(
                f"the model has no {' or '.join(sorted(missing))} loss, which the loss "
                f"'{self.name}' is made of: it has {', '.join(losses)}"
            )
        return self.sign * torch.stack([losses[part] for part in chosen]).sum(0)

    def judged(self, model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The same, and which images are fooled (B,).

        Losses and predictions are two forward passes, the second without a graph.
        """
        return self(model, x, y), fooled(model(x), y)


def fooled(predictions: Tensor, y: Tensor) -> Tensor:
    """Which images, (B,) bool, predictions (B,D,6) are of a quality below 0.5 for."""
    return quality(predictions, y) < FOOLED_BELOW


total = DetectionLoss("total")
classification = DetectionLoss("classification", parts=("classification",))
objectness = DetectionLoss("objectness", parts=("objectness",))
box = DetectionLoss("box", parts=("box",))
# Chow et al. 2020 (TOG, arXiv 2004.04320): objects vanish where the loss of an image without any is
# lowered, and appear where it is raised. Boxes have no part in it: nothing stands for any.
_SEEN = ("objectness", "classification")
vanishing = DetectionLoss("vanishing", maybe=_SEEN, sign=-1, boxless=True)
fabrication = DetectionLoss("fabrication", maybe=_SEEN, boxless=True)

DETECTION_LOSSES: Table[Loss] = Table(
    "detection loss",
    {loss.name: loss for loss in (total, classification, objectness, box, vanishing, fabrication)},
)
