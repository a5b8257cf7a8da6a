"""What GPM does to its own second-order gradient: clipping, and numbers that are not finite."""

from __future__ import annotations

import copy
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from robustbench_gpm.core import UserError
from robustbench_gpm.flags import build, build_parser, parse
from robustbench_gpm.losses import cross_entropy
from robustbench_gpm.objectives import GPM, FlowGradient, InputGradient, Penalised
from robustbench_gpm.objectives.modes import PenaltyMode

FLOW = FlowGradient(3000.0, 0.0)
CLIPPED = GPM(100.0, gpm_clip_ratio=(0.2, 0.8))


def convolutional() -> nn.Module:
    layers = (nn.Conv2d(2, 4, 3, padding=1), nn.Softplus(), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(4 * 36, 5)).double()


def batch(size: int = 8) -> tuple[Tensor, Tensor]:
    return torch.rand(size, 2, 6, 6, dtype=torch.double), torch.randint(0, 5, (size,))


def gradient(objective: Penalised, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The objective's gradient; `model` is left as it was."""
    model = copy.deepcopy(model)
    objective.backward(model, x, y, cross_entropy)
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_clipping_is_to_quantiles_over_all_parameters_together() -> None:
    gradients = [torch.tensor([[1.0, -2.0], [3.0, -4.0]]), torch.tensor([5.0, -6.0, 7.0])]

    def edited(low: float, high: float, to_zero: bool = False) -> list[Any]:
        penalty = GPM(1.0, gpm_clip_ratio=(low, high), gpm_clip_to_zero=to_zero)
        return [g.tolist() for g in penalty.edited([g.clone() for g in gradients])]

    # |g| is 1, ..., 7: the quantile q lies at 1 + 6 q
    assert edited(0.0, 1.0) == [g.tolist() for g in gradients]
    assert edited(0.0, 0.75) == [[[1, -2], [3, -4]], [5, -5.5, 5.5]]
    assert edited(0.0, 0.75, to_zero=True) == [[[1, -2], [3, -4]], [5, 0, 0]]
    assert edited(0.4, 1.0) == [[[0, 0], [0, -4]], [5, -6, 7]]
    assert edited(0.4, 0.75) == [[[0, 0], [0, -4]], [5, -5.5, 5.5]]


def test_what_is_not_finite_becomes_0_and_is_no_part_of_the_quantiles() -> None:
    inf, nan = torch.inf, torch.nan
    (found,) = GPM(1.0).edited([torch.tensor([1.0, nan, -inf, inf, -3.0])])
    assert found.tolist() == [1, 0, 0, 0, -3]
    penalty = GPM(1.0, gpm_clip_ratio=(0.0, 0.5))
    (found,) = penalty.edited([torch.tensor([1.0, nan, -inf, inf, -3.0])])
    assert found.tolist() == [1, 0, 0, 0, -2]
    (found,) = penalty.edited([torch.tensor([nan, inf])])
    assert found.tolist() == [0, 0]
    assert penalty.edited([]) == []


@pytest.mark.parametrize("mode", ["exact", "finite_difference"])
def test_only_the_penaltys_own_gradient_is_clipped(
    mode: Literal["exact", "finite_difference"],
) -> None:
    model, (x, y) = convolutional(), batch()
    taken = PenaltyMode(mode, difference_step=1e-6)
    plain = gradient(Penalised(), model, x, y)
    own = gradient(Penalised((GPM(100.0),)), model, x, y) - plain
    other = gradient(Penalised((FLOW,)), model, x, y) - plain
    (clipped,) = CLIPPED.edited([own])
    assert (clipped - own).norm() > 0.1 * own.norm()
    found = gradient(Penalised((FLOW, CLIPPED), taken), model, x, y)
    torch.testing.assert_close(found, plain + other + clipped, rtol=1e-3, atol=1e-5)


class Bent(nn.Module):
    """u + u^1.5 of u = weight * x, whose second derivative is infinite at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 6, 6, dtype=torch.double))

    def forward(self, x: Tensor) -> Tensor:
        u = self.weight * x
        found: Tensor = u + u.pow(1.5)
        return found


@pytest.mark.parametrize("penalty", [GPM(100.0, 1.0), GPM(100.0, 1.0, gpm_clip_ratio=(0.0, 0.99))])
def test_gpm_survives_second_derivatives_that_are_not_finite(penalty: GPM) -> None:
    model = nn.Sequential(Bent(), nn.Flatten(), nn.Linear(72, 5)).double()
    x, y = batch()
    x[:, 0, 0, 0] = 0.0
    plain = gradient(Penalised(), model, x, y)
    assert plain.isfinite().all()
    broken = gradient(Penalised((InputGradient(1.5),)), model, x, y)
    assert not broken.isfinite().all()
    found = gradient(Penalised((penalty,)), model, x, y)
    assert found.isfinite().all()
    rest = broken.isfinite()
    assert torch.equal(found[~rest], plain[~rest])
    assert (found - plain)[rest].norm() > 1e-3 * plain.norm()


def test_clip_ratio_is_a_flag_of_two_numbers() -> None:
    parser = build_parser("main.py", "", [GPM], {})
    given = ["--gpm_lamb", "1", "--gpm_clip_ratio", "0.1", "0.9", "--gpm_clip_to_zero"]
    found = build(GPM, parse(parser, given))
    assert found == GPM(1.0, gpm_clip_ratio=(0.1, 0.9), gpm_clip_to_zero=True)
    assert build(GPM, parse(parser, [])).edits == "non_finite"
    for wrong in ((0.5,), (0.9, 0.1), (0.0, 0.5, 1.0)):
        with pytest.raises(
            UserError, match="--gpm_clip_ratio needs two numbers, the smaller first"
        ):
            GPM(1.0, gpm_clip_ratio=wrong)
    with pytest.raises(UserError, match="--gpm_clip_ratio must be at most 1, not 2"):
        GPM(1.0, gpm_clip_ratio=(0.0, 2.0))
