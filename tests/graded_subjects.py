"""Small models of the three graded tasks on embedded scenes, quick and with something to lose."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from robustbench_gpm.datasets import LoadOptions, Split, load_split
from robustbench_gpm.evaluator import Subject
from robustbench_gpm.masks import VOID
from robustbench_gpm.tasks import TASKS

N = 7
NOWHERE = LoadOptions(None, Path("unused"))


class Segmenter(nn.Module):
    """Background where a pixel's neighbourhood is dark, and else the first digit, or another."""

    def __init__(self) -> None:
        super().__init__()
        stream = torch.Generator().manual_seed(0)
        self.look = nn.Conv2d(1, 6, 3, padding=1, bias=False)
        self.tell = nn.Conv2d(6, 11, 1, bias=False)
        for weights in (self.look.weight, self.tell.weight):
            weights.data = torch.randn(weights.shape, generator=stream)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.tell(self.look(x).tanh()) / 4
        dark = 12 * (0.4 - (x + nn.functional.avg_pool2d(x, 3, 1, 1)) / 2)
        first = logits[:, 1:2] - dark + 2
        return torch.cat((logits[:, :1] + dark, first, logits[:, 2:] - dark), 1)


def ink_scenes(count: int) -> Split:
    """Scenes in which every digit's ink is of the first digit's class."""
    scenes = load_split("digit_scenes", "test", NOWHERE).limit(count)
    ink = (scenes.labels > 0) & (scenes.labels != VOID)
    masks = torch.where(ink, 1, scenes.labels.long()).to(torch.uint8)
    return Split(scenes.images, masks, scenes.index, scenes.classes)


class Grid(nn.Module):
    """A detector that asks of each of 16 cells of 8x8 pixels whether it is bright.

    `model(x)` gives boxes with a score and class 0, `model(x, y)` the cross-entropy of the cells
    that a label's middle lies in, against the others.
    """

    def logits(self, x: Tensor) -> Tensor:
        return 25 * (nn.functional.avg_pool2d(x.clamp(0, 1), 8).flatten(1) - 0.3)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor | dict[str, Tensor]:
        if y is None:
            with torch.no_grad():
                return self.boxes(self.logits(x).sigmoid())
        middle = ((y[..., :2] + y[..., 2:4]) / 16).long()
        wanted = torch.zeros(len(x), 17)
        wanted.scatter_(1, torch.where(y[..., 4] >= 0, 4 * middle[..., 1] + middle[..., 0], 16), 1)
        each = nn.functional.binary_cross_entropy_with_logits(
            self.logits(x), wanted[:, :16].to(x), reduction="none"
        )
        return {"objectness": each.mean(1)}

    def boxes(self, scores: Tensor) -> Tensor:
        left = torch.arange(16) % 4 * 8.0
        top = torch.arange(16) // 4 * 8.0
        corners = torch.stack((left, top, left + 8, top + 8), 1).expand(len(scores), -1, -1)
        rows = (corners, scores[..., None], torch.zeros_like(scores)[..., None])
        return torch.cat(rows, 2).float()


def grid_scenes(count: int) -> Split:
    """Scenes with a box around each bright cell, of one class, so that the grid is right."""
    scenes = load_split("digit_scenes", "test", NOWHERE).limit(count)
    grid, (x, _) = Grid(), scenes.batch(slice(None))
    labels = grid.boxes(grid.logits(x).sigmoid())
    faint = labels[..., 4] < 0.5
    labels = torch.cat((labels[..., :4], labels[..., 5:]), 2)
    labels[faint] = -1
    return Split(scenes.images, labels, scenes.index, ("bright",))


class Quarters(nn.Module):
    """Several classes at once: which of four quarters of the image are bright."""

    def forward(self, x: Tensor) -> Tensor:
        return 40 * (nn.functional.avg_pool2d(x.clamp(0, 1), 16).flatten(1) - 0.2)


def quarter_scenes(count: int) -> Split:
    """Scenes labelled as the quarters are."""
    scenes = load_split("digit_scenes", "test", NOWHERE).limit(count)
    x, _ = scenes.batch(slice(None))
    labels = (Quarters()(x) > 0).float()
    return Split(scenes.images, labels, scenes.index, ("nw", "ne", "sw", "se"))


MADE: dict[str, Callable[[int], tuple[nn.Module, Split]]] = {
    "segmentation": lambda count: (Segmenter(), ink_scenes(count)),
    "detection": lambda count: (Grid(), grid_scenes(count)),
    "multilabel": lambda count: (Quarters(), quarter_scenes(count)),
}


def subject(
    task: str, around: Callable[[nn.Module], nn.Module] | None = None, count: int = N
) -> Subject:
    """The task's model, or a defence `around` it, on a few scenes."""
    model, split = MADE[task](count)
    hashes: dict[str, object] = dict.fromkeys(
        ("weights_hash", "data_hash", "configuration_hash"), "x"
    )
    model = (around(model) if around else model).eval()
    return Subject(task, model, split, TASKS[task](), hashes)
