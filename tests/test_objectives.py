"""Objectives against closed forms, plain autograd and finite differences, in float64."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from robustbench_gpm.core import UserError
from robustbench_gpm.deformation import identity_flow, to_pixels, warp
from robustbench_gpm.losses import cross_entropy
from robustbench_gpm.objectives import (
    GPM,
    PENALTIES,
    FlowGradient,
    InputGradient,
    Penalised,
    Penalty,
)

EVERY = [
    FlowGradient(30000.0, 0.0),
    InputGradient(1.5, "l1"),
    InputGradient(1.5, "l2"),
    InputGradient(300.0, "l2sq"),
    GPM(100.0, 0.7),
]


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.Softplus(), nn.Flatten(), nn.Linear(4 * 36, 5)
    ).double()


def batch(size: int = 8) -> tuple[Tensor, Tensor]:
    return torch.rand(size, 2, 6, 6, dtype=torch.double), torch.randint(0, 5, (size,))


def gradients(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def value(objective: Penalised, model: nn.Module, x: Tensor, y: Tensor) -> float:
    log = objective.backward(copy.deepcopy(model), x, y, cross_entropy)
    return float(log["loss"]) + sum(p.weight * float(log[p.tag]) for p in objective.penalties)


@pytest.mark.parametrize("penalty", EVERY, ids=repr)
def test_gradient_is_the_finite_difference_of_the_value(penalty: Penalty) -> None:
    model, (x, y) = network(), batch()
    objective = Penalised((penalty,))
    objective.backward(model, x, y, cross_entropy)
    direction = torch.randn_like(gradients(model))
    step, moved = 1e-6, []
    for sign in (1, -1):
        other = copy.deepcopy(model)
        flat = nn.utils.parameters_to_vector(model.parameters()) + sign * step * direction
        nn.utils.vector_to_parameters(flat, other.parameters())
        moved.append(value(objective, other, x, y))
    expected = (moved[0] - moved[1]) / (2 * step)
    assert float(gradients(model) @ direction) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("penalty", EVERY, ids=repr)
def test_one_batch_of_8_is_two_accumulated_batches_of_4(penalty: Penalty) -> None:
    model, (x, y) = network(), batch(8)
    Penalised((penalty,)).backward(model, x, y, cross_entropy)
    whole = gradients(model)
    model.zero_grad()
    for part in (slice(0, 4), slice(4, 8)):
        Penalised((penalty,)).backward(model, x[part], y[part], cross_entropy)
    torch.testing.assert_close(gradients(model) / 2, whole, rtol=1e-10, atol=1e-12)


def by_definition(penalty: Penalty, gradient: Tensor, x: Tensor) -> Tensor:
    """The penalty of one sample (C,H,W), number by number, as the papers write it."""
    if isinstance(penalty, GPM):
        calm = sorted(gradient.abs().mean(0).flatten(), key=lambda pixel: pixel.item())
        return torch.stack(calm[: int(penalty.gpm_use_ratio * len(calm))]).sum()
    if isinstance(penalty, InputGradient):
        order = 1 if penalty.igr_norm == "l1" else 2
        size = (gradient.abs() ** order).sum() ** (1 / order)
        return size**2 if penalty.igr_norm == "l2sq" else size
    total, last = gradient.new_zeros(()), x.shape[-1] - 1  # square images
    for row in range(last + 1):
        for column in range(last + 1):
            right = x[:, row, min(column + 1, last)] - x[:, row, max(column - 1, 0)]
            down = x[:, min(row + 1, last), column] - x[:, max(row - 1, 0), column]
            for difference in (right, down):
                per_pixel = (gradient[:, row, column] * difference / 2).sum()
                total = total + (per_pixel * last / 2) ** 2
    return total


def plainly(
    penalty: Penalty, weight: float, model: nn.Module, x: Tensor, y: Tensor
) -> tuple[Tensor, Tensor]:
    """(mean penalty, the objective's gradient), sample after sample by autograd's own means."""
    total, penalties = x.new_zeros(()), x.new_zeros(())
    for image, label in zip(x, y, strict=True):
        leaf = image[None].clone().requires_grad_()
        loss = nn.functional.cross_entropy(model(leaf), label[None])
        (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True)
        price = by_definition(penalty, gradient[0], image)
        total, penalties = total + loss + weight * price, penalties + price
    found = torch.autograd.grad(total / len(x), list(model.parameters()))
    return penalties.detach() / len(x), torch.cat([g.flatten() for g in found])


WEIGHTS = [30000 / 128**2, 1.5 * 4 / 255, 1.5 * 4 / 255, 300 * (4 / 255) ** 2, 100 * 0.226 / 256]


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize(("penalty", "weight"), list(zip(EVERY, WEIGHTS, strict=True)), ids=repr)
def test_value_and_gradient_are_those_of_autograd_written_out(
    penalty: Penalty, weight: float, soft: bool
) -> None:
    model, (x, y) = network(), batch(4)
    if soft:
        y = torch.rand(4, 5, dtype=torch.double).softmax(1)
    value, gradient = plainly(penalty, weight, model, x, y)
    log = Penalised((penalty,)).backward(model, x, y, cross_entropy)
    torch.testing.assert_close(log[penalty.tag], value)
    torch.testing.assert_close(gradients(model), gradient)


def test_the_table_is_tested_whole_and_names_its_flags() -> None:
    assert {type(penalty) for penalty in EVERY} == set(PENALTIES.values())
    for tag, penalty in PENALTIES.items():
        assert f"{tag}_lamb" in {field.name for field in dataclasses.fields(penalty)}
        assert penalty().weight == 0


@pytest.mark.parametrize("penalty", EVERY, ids=repr)
def test_a_penalty_changes_the_gradient(penalty: Penalty) -> None:
    model, (x, y) = network(), batch()
    Penalised().backward(model, x, y, cross_entropy)
    plain = gradients(model)
    model.zero_grad()
    Penalised((penalty,)).backward(model, x, y, cross_entropy)
    assert (gradients(model) - plain).norm() > 1e-3 * plain.norm()


def test_baseline_is_the_mean_loss() -> None:
    model, (x, y) = network(), batch()
    Penalised().backward(model, x, y, cross_entropy)
    expected = torch.autograd.grad(
        nn.functional.cross_entropy(model(x), y), list(model.parameters())
    )
    torch.testing.assert_close(gradients(model), torch.cat([g.flatten() for g in expected]))


def test_penalties_add_up() -> None:
    model, (x, y) = network(), batch()

    def gradient_of(*penalties: Penalty) -> Tensor:
        model.zero_grad()
        Penalised(penalties).backward(model, x, y, cross_entropy)
        return gradients(model)

    plain, alone = gradient_of(), [gradient_of(penalty) for penalty in EVERY]
    torch.testing.assert_close(gradient_of(*EVERY), sum(alone, (1 - len(EVERY)) * plain))


@pytest.mark.parametrize("penalty", EVERY, ids=repr)
def test_images_and_their_gradients_are_left_alone(penalty: Penalty) -> None:
    model, (x, y) = network(), batch()
    before = x.clone()
    Penalised((penalty,)).backward(model, x, y, cross_entropy)
    assert torch.equal(x, before)
    assert not x.requires_grad
    assert x.grad is None


def test_flow_gradient_is_the_papers_at_its_batch_size() -> None:
    """lamb * mean_i sum (d mean CE / d flow_i)^2 at B = 128, through the warp."""
    model, (x, y) = network(), batch(128)
    flow = identity_flow(x).requires_grad_()
    pixels = to_pixels(1, x.shape[-1])  # flow in [-1,1] coordinates
    loss = nn.functional.cross_entropy(model(warp(x, flow * pixels)), y)
    (gradient,) = torch.autograd.grad(loss, flow, create_graph=True)
    total = loss + 300 * gradient.square().flatten(1).sum(1).mean()
    expected = torch.autograd.grad(total, list(model.parameters()))
    Penalised((FlowGradient(300.0, 0.0),)).backward(model, x, y, cross_entropy)
    torch.testing.assert_close(gradients(model), torch.cat([g.flatten() for g in expected]))


def test_flow_gradient_scales_each_axis_by_its_own_length() -> None:
    x, gradient = torch.rand(1, 1, 5, 9).double(), torch.rand(1, 1, 5, 9).double()
    flow = identity_flow(x).requires_grad_()
    scale = torch.tensor([to_pixels(1, 9), to_pixels(1, 5)]).view(2, 1, 1)
    (expected,) = torch.autograd.grad((warp(x, flow * scale) * gradient).sum(), flow)
    penalty = FlowGradient(1.0)(gradient, x)
    torch.testing.assert_close(penalty, expected.square().sum().view(1))


def test_random_start_moves_by_the_stated_deviation() -> None:
    ramp = torch.linspace(0.2, 0.8, 33).expand(1, 1, 33, 33).contiguous()
    moved = FlowGradient(300.0, 0.01).prepare(ramp)
    step = 0.6 / 32
    displacement = (moved - ramp)[..., :, 3:-3] / step
    assert float(displacement.std()) == pytest.approx(0.01 * to_pixels(1, 33), rel=0.1)
    assert FlowGradient(300.0, 0.0).prepare(ramp) is ramp


def test_random_start_moves_both_ways_inside_the_range_and_is_where_all_is_taken() -> None:
    model, (x, y) = network(), batch()
    penalty = FlowGradient(30000.0, 0.1)
    torch.manual_seed(1)
    moved = penalty.prepare(x)
    assert moved.min() >= 0
    assert moved.max() <= 1
    for image in (x, x.transpose(2, 3)):  # flat along one axis: only the other can move it
        flat = image[..., :1].expand_as(image)
        assert not torch.equal(penalty.prepare(flat), flat)
    torch.manual_seed(1)
    log = Penalised((penalty,)).backward(model, x, y, cross_entropy)
    there = gradients(model)
    model.zero_grad()
    still = Penalised((FlowGradient(30000.0, 0.0),))
    assert still.backward(model, moved, y, cross_entropy) == log
    assert torch.equal(gradients(model), there)


@dataclass
class LinearLoss:
    """w . x, whose input gradient is w whatever the image."""

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return model(x.flatten(1)).squeeze(1)

    def judged(self, model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


@pytest.mark.parametrize("norm", ["l1", "l2", "l2sq"])
def test_input_gradient_of_a_linear_loss_is_known(norm: str) -> None:
    model = nn.Linear(8, 1, bias=False).double()
    x = torch.rand(3, 2, 2, 2, dtype=torch.double)
    penalty = InputGradient(1.5, norm, 4 / 255)  # type: ignore[arg-type]
    log = Penalised((penalty,)).backward(model, x, torch.zeros(3), LinearLoss())
    w = model.weight.detach()
    budget = 4 / 255
    size = {"l1": w.abs().sum(), "l2": w.norm(), "l2sq": w.square().sum()}[norm]
    slope = {"l1": w.sign(), "l2": w / w.norm(), "l2sq": 2 * w * budget}[norm]
    torch.testing.assert_close(log["igr"], size)
    expected = x.flatten(1).mean(0) + 1.5 * budget * slope
    torch.testing.assert_close(gradients(model), expected.flatten())


def test_input_gradient_l2_is_finite_where_the_gradient_vanishes() -> None:
    model, x = nn.Linear(8, 1, bias=False).double(), torch.rand(3, 2, 2, 2, dtype=torch.double)
    nn.init.zeros_(model.weight)
    Penalised((InputGradient(1.5, "l2"),)).backward(model, x, torch.zeros(3), LinearLoss())
    assert gradients(model).isfinite().all()


def test_gpm_sums_channel_means_over_the_calmest_pixels_of_each_sample() -> None:
    gradient = torch.tensor([[[[4.0, -1.0], [2.0, 8.0]], [[0.0, 3.0], [-6.0, 8.0]]]])
    # channel means of |gradient|: 2, 2, 4, 8
    x = torch.zeros_like(gradient)
    assert float(GPM(1.0, 0.75)(gradient, x)) == 2 + 2 + 4
    assert float(GPM(1.0, 1.0)(gradient, x)) == 16
    pair = torch.cat((gradient, 10 * gradient))
    assert GPM(1.0, 0.5)(pair, pair).tolist() == [4, 40]
    assert float(GPM(1.0, 0.7)(gradient, x)) == 2 + 2  # floor(2.8), as the authors' code has it
    assert float(GPM(1.0, 0.1)(gradient, x)) == 2  # at least one


def test_documented_conversions() -> None:
    assert FlowGradient(300.0).weight == 300 / 128**2
    assert InputGradient(1.2, "l1", 4 / 255).weight == 1.2 * 4 / 255
    assert InputGradient(1.2, "l2", 0.5).weight == 1.2 * 0.5
    assert InputGradient(1.2, "l2sq", 0.5).weight == 1.2 * 0.5**2
    assert GPM(0.4).weight == pytest.approx(0.4 * 0.226 / 256)


def test_negative_weights_are_refused_in_a_sentence() -> None:
    with pytest.raises(UserError, match="--fgr_lamb must be at least 0, not -1"):
        FlowGradient(-1.0)
    with pytest.raises(UserError, match="--gpm_use_ratio must be at most 1, not 2"):
        GPM(1.0, 2.0)
    with pytest.raises(UserError, match="--igr_ramp must be at least 0, not -1"):
        InputGradient(1.0, igr_ramp=-1.0)
