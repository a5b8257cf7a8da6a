"""How good boxes are: one image's quality, VOC's average precision, and COCO's by torchmetrics.

Predictions are rows (x1,y1,x2,y2,score,class) and labels rows (x1,y1,x2,y2,class), in pixels, each
padded with rows of -1. A label of class -2 - c is an object of class c that is to be ignored, as
VOC does its difficult ones: to find it is neither right nor wrong, and so is to miss it.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_iou

from ..core import UserError

LEAST_SCORE = 0.5  # for a prediction to count in an image's quality
LEAST_SCORES = (0.05, *(k / 10 for k in range(1, 10)))  # in the mean over them
OVERLAP = 0.5  # intersection over union that makes a box right
RIGHT, WRONG, UNCOUNTED = 1, 0, -1
POINTS = 11  # recalls of VOC's average precision


def verdicts(predictions: Tensor, labels: Tensor, overlap: float = OVERLAP) -> Tensor:
    """RIGHT, WRONG or UNCOUNTED for each prediction (D,6) of an image with labels (M,5): (D,).

    By the rules of VOC (Everingham et al. 2010, section 4.2): of the objects of a prediction's
    class, the one it overlaps most (IoU) is what it is about. It is right if that is at least
    `overlap` and no likelier prediction has the object already. Padding is uncounted.
    """
    kinds = torch.where(labels[:, 4] < -1, -2 - labels[:, 4], labels[:, 4])
    shared = box_iou(predictions[:, :4], labels[:, :4])
    shared = shared.masked_fill(predictions[:, 5:] != kinds, -1)
    if len(labels) == 0:
        shared = shared.new_full((len(predictions), 1), -1)
    most, place = (part.tolist() for part in shared.max(1))
    ignored, taken = (labels[:, 4] < -1).tolist(), set()
    found = torch.full((len(predictions),), UNCOUNTED)
    for row in predictions[:, 4].argsort(descending=True, stable=True).tolist():
        if predictions[row, 5] < 0:
            continue
        right = most[row] >= overlap
        if right and ignored[place[row]]:
            continue
        found[row] = RIGHT if right and place[row] not in taken else WRONG
        if right:
            taken.add(place[row])
    return found


@torch.no_grad()
def quality(
    predictions: Tensor,
    labels: Tensor,
    least_score: float = LEAST_SCORE,
    overlap: float = OVERLAP,
) -> Tensor:
    """Each image's F1, in [0,1], of predictions (B,D,6) for labels (B,M,5): shape (B,).

    Twice the objects found, over the objects and the predictions together, where only predictions
    of a score of at least `least_score` count: the harmonic mean of precision and recall. 1 where
    there is nothing to find and nothing is found.
    """
    return _f1(predictions, labels, (least_score,), overlap)[:, 0]


@torch.no_grad()
def mean_quality(predictions: Tensor, labels: Tensor, overlap: float = OVERLAP) -> Tensor:
    """The mean of each image's `quality`, (B,), over least scores of .05, .1, .2 to .9.

    Unlike a single one, it also tells two attacks on an unsure detector apart.
    """
    return _f1(predictions, labels, LEAST_SCORES, overlap).mean(1)


def _f1(
    predictions: Tensor, labels: Tensor, least_scores: Sequence[float], overlap: float
) -> Tensor:
    """F1 of B images at each of L least scores, (B,L).

    One look at an image serves them all: whether a box is right depends on likelier ones alone.
    """
    rows = []
    for own, truth in zip(predictions.detach().cpu(), labels.detach().cpu(), strict=True):
        likely = own[own[:, 4] >= min(least_scores)]
        told = verdicts(likely, truth, overlap)
        objects = int((truth[:, 4] >= 0).sum())
        row = []
        for least in least_scores:
            counted = told[likely[:, 4] >= least]
            right, claimed = int((counted == RIGHT).sum()), int((counted != UNCOUNTED).sum())
            row.append(2 * right / (objects + claimed) if objects + claimed else 1.0)
        rows.append(row)
    found = torch.tensor(rows, dtype=torch.float32, device=predictions.device)
    return found.view(-1, len(least_scores))


def average_precision(
    predictions: Tensor, labels: Tensor, classes: int, overlap: float = OVERLAP
) -> Tensor:
    """VOC 2007's average precision of each class, in [0,1]: shape (classes,), nan where no object.

    Of predictions (N,D,6) for labels (N,M,5) of all images: the mean, over the recalls 0, 0.1 to 1,
    of the highest precision at that recall or more (Everingham et al. 2010, section 4.2).
    """
    told = [verdicts(*image, overlap) for image in zip(predictions, labels, strict=True)]
    verdict = torch.cat(told) if told else torch.zeros(0)
    rows = predictions.reshape(-1, 6)
    result = torch.full((classes,), torch.nan)
    for kind in range(classes):
        objects = int((labels[..., 4] == kind).sum())
        if objects == 0:
            continue
        counted = (rows[:, 5] == kind).cpu() & (verdict != UNCOUNTED)
        scores, right = rows[counted.to(rows.device), 4].cpu(), verdict[counted] == RIGHT
        found = right[scores.argsort(descending=True, stable=True)].cumsum(0)
        precision = found / torch.arange(1, len(found) + 1)
        reached = found * (POINTS - 1) >= torch.arange(POINTS)[:, None] * objects
        highest = torch.where(reached, precision, 0.0)
        result[kind] = highest.amax(1).mean() if len(found) else 0.0
    return result


def mean_average_precision(predictions: Tensor, labels: Tensor) -> dict[str, float]:
    """COCO's mAP of predictions (N,D,6) for labels (N,M,5), by torchmetrics, each in [0,1].

    `map` is the mean over classes and the IoUs 0.5, 0.55 to 0.95, `map_50` and `map_75` are those
    at one. Ignored objects are crowds to it. -1 where there are no objects at all. Raises UserError
    where the extra is not installed.
    """
    metric = _torchmetrics()(backend="faster_coco_eval")
    for own, truth in zip(predictions.detach().cpu(), labels.detach().cpu(), strict=True):
        found, there = own[own[:, 5] >= 0], truth[truth[:, 4] != -1]
        crowd = there[:, 4] < -1
        kinds = torch.where(crowd, -2 - there[:, 4], there[:, 4])
        metric.update(
            [{"boxes": found[:, :4], "scores": found[:, 4], "labels": found[:, 5].long()}],
            [{"boxes": there[:, :4], "labels": kinds.long(), "iscrowd": crowd.long()}],
        )
    values = metric.compute()
    return {name: float(values[name]) for name in ("map", "map_50", "map_75")}


def _torchmetrics() -> Any:
    try:
        importlib.import_module("faster_coco_eval")
        return importlib.import_module("torchmetrics.detection").MeanAveragePrecision
    except ModuleNotFoundError as error:
        raise UserError(
            f"{error.name} is not installed: run pip install 'robustbench_gpm[detection]'"
        ) from error
