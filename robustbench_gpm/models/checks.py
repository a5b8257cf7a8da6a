"""What is asked of a model that came from elsewhere."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ..core import UserError, frozen
from .options import ModelOptions


def in_short(error: BaseException, longest: int = 200) -> str:
    """The first line of what an exception says, or its type where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0][:longest] if lines else type(error).__name__


def require_file(path: Path, what: str) -> None:
    """Raise UserError where there is no file at `path`; `what` names it ("weights")."""
    if not path.is_file():
        raise UserError(f"no {what} file at '{path}': check the path")


def check_output(model: nn.Module, options: ModelOptions) -> None:
    """Run `model` on one black image, in evaluation mode, and look at what comes out.

    Raises UserError where the model cannot take the image, or gives anything but logits of shape
    (1, classes), in segmentation (1, classes, H, W). Leaves the model as it was.
    """
    shape, wanted = (1, options.channels, *options.size), (1, options.classes)
    if options.task == "segmentation":
        wanted = (*wanted, *options.size)  # type: ignore[assignment]
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    try:
        with torch.no_grad(), frozen(model):
            output = model(torch.zeros(shape, dtype=like.dtype, device=like.device))
    except Exception as error:
        raise UserError(
            f"the model cannot take images of shape {shape}, which may be too small for it or have "
            f"the wrong number of channels: {in_short(error)}"
        ) from error
    if options.task == "detection":
        _check_predictions(output)
        return
    if not isinstance(output, Tensor):
        raise UserError(
            f"the model must give logits of shape {wanted} for one image, and gave "
            f"a {type(output).__name__}"
        )
    if tuple(output.shape) != wanted:
        raise UserError(
            f"the model must give logits of shape {wanted} for one image, and gave "
            f"{tuple(output.shape)}: build it for {options.classes} classes"
        )


def _check_predictions(output: object) -> None:
    shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if not isinstance(output, Tensor) or output.dim() != 3 or output.shape[2] != 6:
        raise UserError(
            f"a detector must give predictions (1, D, 6) for one image, rows x1, y1, x2, y2, score "
            f"and class, and gave {shape}: see docs/tasks.md"
        )
