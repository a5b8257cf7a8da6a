"""Detectors: what they give, that images are independent, and the second derivative."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from detectors import LABELS, every, images, smooth, total, two_stage
from torch import Tensor, nn
from torchvision.ops import box_iou

from robustbench_gpm.core import frozen
from robustbench_gpm.models import ModelOptions
from robustbench_gpm.models.activations import with_activation
from robustbench_gpm.models.detection import Detector
from robustbench_gpm.models.detection_boxes import BACKGROUND, BETWEEN, DETECTIONS, detections
from robustbench_gpm.models.detection_dense import (
    DenseDetector,
    digits_detector,
    retinanet_r18,
)
from robustbench_gpm.models.detection_two_stage import FasterRCNN, _sample, faster_rcnn_r18
from robustbench_gpm.objectives import InputGradient, Penalised
from robustbench_gpm.objectives.modes import by_differences


@every
def test_predictions_are_padded_rows_inside_the_image(make: Callable[[], Detector]) -> None:
    found = smooth(make)(images())
    assert found.shape == (3, DETECTIONS, 6)
    there = found[..., 5] >= 0
    assert there.any()
    assert (found[~there] == -1).all()
    boxes, scores = found[..., :4][there], found[..., 4][there]
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2] <= 26).all()
    assert (boxes[:, 3] <= 24).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert ((scores > 0.05) & (scores <= 1)).all()
    for rows, present in zip(found, there, strict=True):
        assert (rows[present, 4].diff() <= 0).all()
        assert (~present).int().diff().ge(0).all()  # padding comes last


@every
def test_an_image_has_the_same_losses_and_boxes_whoever_shares_its_batch(
    make: Callable[[], Detector],
) -> None:
    model, x, y = smooth(make), images(), LABELS.double()
    state = torch.get_rng_state()
    together, found = model(x, y), model(x)
    for i in range(3):
        alone = model(x[i : i + 1], y[i : i + 1])
        for part in model.parts:
            torch.testing.assert_close(alone[part][0], together[part][i], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(model(x[i : i + 1])[0], found[i], rtol=1e-10, atol=1e-10)
    assert torch.equal(torch.get_rng_state(), state)  # nothing is drawn in evaluation mode
    empty = model(x[:0], y[:0])
    assert {part: tuple(v.shape) for part, v in empty.items()} == dict.fromkeys(model.parts, (0,))
    assert model(x[:0]).shape == (0, DETECTIONS, 6)


@every
def test_an_image_that_changes_changes_no_other_images_gradient(
    make: Callable[[], Detector],
) -> None:
    model, x, y = smooth(make), images().requires_grad_(), LABELS.double()
    total = sum(model(x, y).values())
    (gradient,) = torch.autograd.grad(total[0], x)
    assert gradient[0].abs().sum() > 0
    assert (gradient[1:] == 0).all()


@every
def test_padding_and_rows_not_to_be_learnt_change_nothing(make: Callable[[], Detector]) -> None:
    model, x = smooth(make), images()
    padded = torch.cat((LABELS.double(), -torch.ones(3, 2, 5).double()), 1)
    less = LABELS.double().clone()
    less[1, 2] = -1
    for y in (padded, less):
        for part, value in model(x, LABELS.double()).items():
            assert torch.equal(value, model(x, y)[part])


@every
def test_training_draws_from_torchs_generator_and_nothing_else(
    make: Callable[[], Detector],
) -> None:
    model, x, y = smooth(make), images(), LABELS.double()
    model.backbone.stem[1].momentum = 0.0
    model.train()
    torch.manual_seed(1)
    first = model(x, y)
    torch.manual_seed(1)
    again = model(x, y)
    other = model(x, y)
    for part in model.parts:
        assert first[part].shape == (3,)
        assert torch.equal(first[part], again[part])
    assert isinstance(model, DenseDetector) or not torch.equal(
        first["objectness"], other["objectness"]
    )


@pytest.fixture
def same_proposals(monkeypatch: pytest.MonkeyPatch) -> Callable[[Detector, Tensor], None]:
    """Proposals and what is drawn of them are constants to the gradient; hold them still."""

    def hold(model: Detector, x: Tensor) -> None:
        if isinstance(model, FasterRCNN):
            with torch.no_grad():
                kept = model._proposed(x)[-1]
            monkeypatch.setattr(model, "propose", lambda *_: kept)

    return hold


@every
def test_gradient_of_the_penalised_objective_is_that_of_finite_differences(
    make: Callable[[], Detector], same_proposals: Callable[[Detector, Tensor], None]
) -> None:
    model, x, y = smooth(make), images(), LABELS.double()
    same_proposals(model, x)
    penalty = InputGradient(igr_lamb=0.7, igr_norm="l2sq", igr_budget=1.0)
    Penalised((penalty,)).backward(model, x, y, total)

    def objective() -> float:
        at = x.clone().requires_grad_()
        losses = total(model, at, y)
        (gradient,) = torch.autograd.grad(losses.sum(), at)
        return float(
            losses.detach().mean() + penalty.weight * gradient.square().flatten(1).sum(1).mean()
        )

    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        direction = torch.randn_like(parameter)
        slopes, h = [], 1e-5
        for step in (h, -2 * h):
            parameter.data.add_(direction, alpha=step)
            slopes.append(objective())
        parameter.data.add_(direction, alpha=h)
        expected = (slopes[0] - slopes[1]) / (2 * h)
        found = float((parameter.grad * direction).sum())
        assert found == pytest.approx(expected, rel=2e-5, abs=1e-7), name


@every
def test_the_penalty_itself_reaches_the_weights(
    make: Callable[[], Detector], same_proposals: Callable[[Detector, Tensor], None]
) -> None:
    """Otherwise the test above would hold for a graph that was cut off."""
    model, x, y = smooth(make), images(), LABELS.double()
    same_proposals(model, x)
    at = x.requires_grad_()
    (gradient,) = torch.autograd.grad(total(model, at, y).sum(), at, create_graph=True)
    pulled = torch.autograd.grad(
        gradient.square().sum(), list(model.parameters()), allow_unused=True
    )
    reached = sum(g is not None and bool(g.abs().sum() > 0) for g in pulled)
    assert reached >= 0.8 * len(pulled)


def test_the_difference_mode_takes_a_two_stage_detector_too() -> None:
    model, x, y = smooth(two_stage).train(), images(), LABELS.double()
    by_differences([(InputGradient(0.7), 0.1)], 1e-4, model, x, y, total)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_what_counts_is_bounded_and_the_likeliest_in_evaluation_mode() -> None:
    matched = torch.tensor([0, BACKGROUND, 1, BETWEEN, 0, BACKGROUND, BACKGROUND])
    rank = torch.tensor([0.1, 0.2, 0.9, 1.0, 0.5, 0.8, 0.3])
    ours, others = _sample(matched, rank, 4, 0.5)
    assert ours.tolist() == [2, 4]
    assert others.tolist() == [5, 6]
    ours, others = _sample(matched, rank, 2, 0.25)
    assert ours.tolist() == []
    assert others.tolist() == [5, 6]


def test_detections_thin_out_each_class_by_itself() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [0, 0, 10, 10], [20, 20, 60, 90]])
    scores, classes = torch.tensor([0.6, 0.9, 0.5, 0.3]), torch.tensor([1, 1, 0, 0])
    found = detections(boxes, scores, classes, (40, 50), least_score=0.05, overlap=0.5)
    assert found[:3].tolist() == pytest.approx(
        torch.tensor([[1, 0, 11, 10, 0.9, 1], [0, 0, 10, 10, 0.5, 0], [20, 20, 50, 40, 0.3, 0]])
    )
    assert (found[3:] == -1).all()


@pytest.fixture(params=[faster_rcnn_r18, retinanet_r18, digits_detector])
def network(request: pytest.FixtureRequest) -> nn.Module:
    return request.param(ModelOptions(4, 1, 32, (0.0,), (1.0,)))


def test_networks_take_small_canvases_of_any_shape_and_channels(network: nn.Module) -> None:
    x = torch.rand(2, 1, 32, 45)
    y = torch.full((2, 1, 5), -1.0)
    y[0, 0] = torch.tensor([3.0, 4, 17, 15, 3])
    assert all(p.requires_grad for p in network.parameters())
    assert not any(getattr(m, "inplace", False) for m in network.modules())
    network(x, y)  # batch norms see something
    with frozen(network):
        assert network(x).shape == (2, DETECTIONS, 6)
        losses = network(x, y)
    assert all(v.shape == (2,) and torch.isfinite(v).all() for v in losses.values())
    assert losses["box"][0] > 0
    assert losses["box"][1] == 0
    assert with_activation(network, "gelu", torch.zeros(1, 1, 32, 32)) > 0


def test_the_small_detector_is_small() -> None:
    model = digits_detector(ModelOptions(10, 1, 32, (0.0,), (1.0,)))
    assert sum(p.numel() for p in model.parameters()) < 300_000


def test_the_small_detector_learns_where_bright_squares_are() -> None:
    """Trained from scratch on squares of two sizes, it finds those of images it has not seen."""
    model = digits_detector(ModelOptions(2, 1, 32, (0.0,), (1.0,)))
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(60):
        x, y = squares(16)
        optimiser.zero_grad()
        total(model, x, y).mean().backward()
        optimiser.step()
    x, y = squares(20)
    with frozen(model):
        best = model(x)[:, 0]
    overlap = box_iou(best[:, :4], y[:, 0, :4]).diagonal()
    assert overlap.mean() > 0.6
    assert (best[:, 5] == y[:, 0, 4]).float().mean() > 0.8


def squares(count: int) -> tuple[Tensor, Tensor]:
    kind = torch.randint(0, 2, (count,))
    side = torch.where(kind == 0, 8, 14)
    corner = (torch.rand(count, 2) * (31 - side)[:, None]).long()
    x, y = 0.1 * torch.rand(count, 1, 32, 32), torch.zeros(count, 1, 5)
    for i in range(count):
        (left, top), s = corner[i].tolist(), int(side[i])
        x[i, 0, top : top + s, left : left + s] = 0.9
        y[i, 0] = torch.tensor([left, top, left + s, top + s, int(kind[i])])
    return x, y
