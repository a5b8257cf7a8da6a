"""Multi-hot labels: the loss by its formula, who is fooled, and average precision as sklearn's."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score
from torch import Tensor, nn

from robustbench_gpm.attacks.pgd import PGD
from robustbench_gpm.tasks.multilabel_loss import (
    average_precision,
    mean_average_precision,
    multi_hot,
)


class Given(nn.Module):
    """Logits that are the image's own values."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


def test_the_loss_is_the_mean_binary_cross_entropy() -> None:
    logits = torch.tensor([[0.3, -2.0, 60.0], [-400.0, 1.0, 0.0]]).double().requires_grad_()
    y = torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
    losses = multi_hot(Given(), logits, y)

    def of(logit: float, label: float) -> float:  # log(1 + e^-z), z the logit towards the label
        towards = logit if label else -logit
        return math.log1p(math.exp(-towards)) if towards > -100 else -towards

    pairs = zip(logits.tolist(), y.tolist(), strict=True)
    expected = [sum(map(of, row, labels)) / 3 for row, labels in pairs]
    torch.testing.assert_close(losses, torch.tensor(expected).double())
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    torch.testing.assert_close(gradient, (logits.detach().sigmoid() - y) / 3)


def test_fooled_is_whose_set_is_not_the_true_one() -> None:
    logits = torch.tensor(
        [[1.0, -1.0], [1.0, 1.0], [-1.0, -1.0], [1.0, 0.0], [0.0, -1.0], [torch.nan, -1.0]]
    )
    for y, expected in (
        ([1.0, 0.0], [False, True, True, False, True, True]),
        ([0.0, 0.0], [True, True, False, True, False, True]),
        ([1.0, 1.0], [True, False, True, True, True, True]),
    ):
        labels = torch.tensor([y] * len(logits))
        losses, fooled = multi_hot.judged(Given(), logits, labels)
        assert fooled.tolist() == expected
        assert torch.equal(losses.isnan(), logits.isnan().any(1))


def test_attacks_raise_it() -> None:
    """A linear model: every logit is moved against its label, by the budget times its weights."""
    weight = torch.randn(5, 12, generator=torch.manual_seed(0)).double()
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 1, bias=False)).double()
    model[1].weight.data.copy_(weight[:1])
    x = torch.full((2, 3, 2, 2), 0.5).double()
    y = torch.tensor([[1.0], [0.0]])
    images = PGD(early_stop=False)(model, x, y, budget=0.1, loss=multi_hot)
    expected = 0.1 * weight[0].sign() * torch.tensor([[-1.0], [1.0]])
    torch.testing.assert_close((images - x).flatten(1), expected)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_average_precision_is_sklearns(data: st.DataObject) -> None:
    n, k = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 4))
    generator = torch.manual_seed(data.draw(st.integers(0, 10**6)))
    levels = data.draw(st.sampled_from([2, 5, 1000]))  # few levels, many equal scores
    scores = torch.randint(0, levels, (n, k), generator=generator) / levels
    y = (torch.rand(n, k, generator=generator) < 0.3).float()
    found = average_precision(scores, y)
    holds = y.any(0)
    assert torch.equal(found.isnan(), ~holds)
    expected = [average_precision_score(y[:, i], scores[:, i]) for i in range(k) if holds[i]]
    torch.testing.assert_close(found[holds], torch.tensor(expected, dtype=torch.float64))
    if expected:
        mean = mean_average_precision(scores, y)
        assert mean == pytest.approx(sum(expected) / len(expected))


def test_average_precision_by_hand() -> None:
    scores = torch.tensor([[0.9], [0.8], [0.7], [0.6]])
    y = torch.tensor([[1.0], [0.0], [1.0], [0.0]])
    assert mean_average_precision(scores, y) == pytest.approx((1 + 2 / 3) / 2)
    nothing = torch.zeros(4, 2)
    assert math.isnan(mean_average_precision(torch.rand(4, 2), nothing))
    assert math.isnan(mean_average_precision(scores[:0], y[:0]))
    # A class that holds nowhere is left out, not counted as 0.
    both = torch.cat((y, nothing[:, :1]), 1)
    assert mean_average_precision(scores.expand(4, 2), both) == pytest.approx(5 / 6)
