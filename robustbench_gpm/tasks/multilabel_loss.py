"""Labels of which several may hold at once: their loss, and mean average precision."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class MultiHotLoss:
    """A `core.Loss` for labels y (B,K) of zeros and ones: binary cross-entropy, mean over classes.

    A class is predicted where its probability, sigmoid(logit), is above 0.5. A sample is fooled
    where the classes predicted are not exactly those that hold; so it is where a logit is NaN.
    """

    name: str = "binary_cross_entropy"

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return binary_cross_entropy_of(model(x), y)

    def judged(self, model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        logits = model(x)
        return binary_cross_entropy_of(logits, y), mistaken(logits.detach(), y)


def binary_cross_entropy_of(logits: Tensor, y: Tensor) -> Tensor:
    """-mean over K of y log p + (1 - y) log(1 - p), p = sigmoid(logits (B,K)): shape (B,)."""
    each = nn.functional.binary_cross_entropy_with_logits(logits, y.to(logits), reduction="none")
    return each.mean(1)


def mistaken(logits: Tensor, y: Tensor) -> Tensor:
    """Whose classes predicted by logits (B,K) are not exactly those of y (B,K): (B,) bool."""
    right = torch.where(y > 0.5, logits > 0, logits <= 0)  # NaN is neither
    return ~right.all(1)


def average_precision(scores: Tensor, y: Tensor) -> Tensor:
    """The average precision of each class, (K,) in float64, for scores (N,K) and labels y (N,K).

    sum_n (R_n - R_{n-1}) P_n over the thresholds, from the highest score down, without
    interpolation; equal scores share a threshold. NaN for a class that holds nowhere.
    """
    columns = zip(scores.double().unbind(1), (y > 0.5).unbind(1), strict=True)
    found = [_average_precision(score, truth) for score, truth in columns]
    return torch.stack(found) if found else scores.new_empty(0).double()


def mean_average_precision(scores: Tensor, y: Tensor) -> float:
    """The mean of `average_precision` over the classes that hold somewhere; NaN if none does.

    All samples are ranked together; the papers on CholecT45 (Nwoye et al. 2022, arXiv 2204.05235)
    also take it in each video by itself, and then the mean over the videos, class by class.
    """
    return float(average_precision(scores, y).nanmean())


def _average_precision(score: Tensor, truth: Tensor) -> Tensor:
    order = score.argsort(descending=True, stable=True)
    score, hits = score[order], truth[order].double().cumsum(0)
    if len(score) == 0 or hits[-1] == 0:
        return score.new_tensor(torch.nan)
    last = torch.ones_like(truth)  # of those with the same score
    last[:-1] = score[1:] != score[:-1]
    ranks = torch.arange(1, len(score) + 1, device=score.device)
    hits, ranks = hits[last], ranks[last]
    before = torch.cat((hits.new_zeros(1), hits[:-1]))
    return ((hits - before) * hits / ranks).sum() / hits[-1]


multi_hot = MultiHotLoss()
