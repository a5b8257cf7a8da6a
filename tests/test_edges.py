"""Edge regularisation against scipy, autograd written out plainly and finite differences."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn

from robustbench_gpm.core import Loss, UserError
from robustbench_gpm.losses import cross_entropy
from robustbench_gpm.objectives import InputGradient, Objective, Penalised
from robustbench_gpm.objectives.edge_teacher import edge_map
from robustbench_gpm.objectives.edges import (
    EdgeOptions,
    EdgeRegularised,
    drawn_classes,
    edge_errors,
    of_unit_size,
)


@dataclass(frozen=True)
class Aside:
    """An objective that adds nothing, so that what edges add stands alone; logs the epoch."""

    epoch: float = 0.0

    def at(self, epoch: float) -> Aside:
        return Aside(epoch)

    def backward(self, model: nn.Module, x: Tensor, y: Tensor, loss: Loss) -> dict[str, Tensor]:
        return {"loss": torch.zeros(())}


@dataclass(frozen=True)
class Baseline:
    """The mean loss, but not known to be: edges cannot share its pass."""

    def at(self, epoch: float) -> Baseline:
        return self

    def backward(self, model: nn.Module, x: Tensor, y: Tensor, loss: Loss) -> dict[str, Tensor]:
        return Penalised().backward(model, x, y, loss)


def network(*extra: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 4, 3, padding=1), *extra, nn.Softplus(), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(4 * 48, 5)).double()


def batch(size: int = 6) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.rand(size, 3, 6, 8, dtype=torch.double), torch.randint(0, 5, (size,))


def gradients(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def run(objective: Objective, model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """One backward pass, with the same random numbers every time."""
    model.zero_grad()
    torch.manual_seed(7)
    return objective.backward(model, x, y, cross_entropy)


def scipys_edges(image: np.ndarray) -> np.ndarray:
    """(C,H,W) -> (H,W), by full kernels; torch's reflect is scipy's mirror."""
    kernel = np.array([[-0.5, 0, 0.5], [-1, 0, 1], [-0.5, 0, 0.5]])
    squares = np.zeros(image.shape[1:])
    for channel in image:
        blurred = ndimage.gaussian_filter(channel, 1.0, mode="mirror")
        for k in (kernel, kernel.T):
            squares += ndimage.correlate(blurred, k, mode="mirror") ** 2
    outline: np.ndarray = ndimage.gaussian_filter(np.sqrt(squares), 1.0, mode="mirror")
    return outline


# The teacher


@pytest.mark.parametrize("shape", [(3, 6, 9), (1, 5, 5), (2, 12, 7)])
def test_the_teacher_is_scipys(shape: tuple[int, ...]) -> None:
    x = torch.rand(2, *shape, dtype=torch.double)
    expected = np.stack([scipys_edges(image) for image in x.numpy()])
    np.testing.assert_allclose(edge_map(x).squeeze(1).numpy(), expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(edge_map(x.float()).squeeze(1).numpy(), expected, rtol=0, atol=1e-6)


def test_the_teacher_lies_along_the_edge() -> None:
    x = torch.zeros(1, 3, 16, 16)
    x[..., 8:] = 1  # an upright edge between columns 7 and 8
    along = edge_map(x)[0, 0]
    assert along.shape == (16, 16)
    torch.testing.assert_close(along, along[:1].expand(16, 16))
    torch.testing.assert_close(along, along.flip(1))
    assert int(along[0].argmax()) in (7, 8)


@pytest.mark.parametrize("grey", [0.0, 0.1, 0.7, 1.0])
def test_an_image_without_contrast_has_no_edges_at_all(grey: float) -> None:
    assert edge_map(torch.full((1, 3, 9, 9), grey)).abs().max() == 0


def test_images_too_small_for_the_blur_are_refused() -> None:
    with pytest.raises(UserError, match="at least 5 pixels on either side, and these have 4 x 8"):
        edge_map(torch.rand(1, 1, 4, 8))


# The penalty


def written_out(model: nn.Module, x: Tensor, numbers: Tensor) -> Tensor:
    """The mean squared error of each sample, one sample at a time."""
    errors = []
    for i, number in enumerate(numbers.tolist()):
        image = x[i : i + 1].clone().requires_grad_()
        logits = model(image)[0]
        shares = np.exp(logits.detach().numpy() / 0.5)
        k = int(np.searchsorted(np.cumsum(shares / shares.sum()), number, side="right"))
        (g,) = torch.autograd.grad(logits[k], image, create_graph=True)
        edges = torch.tensor(scipys_edges(image.detach()[0].numpy())).expand(3, 6, 8)
        difference = g[0] / g.square().mean().sqrt() - edges / edges.square().mean().sqrt()
        errors.append(difference.square().mean())
    return torch.stack(errors)


@pytest.mark.parametrize("inner", [Penalised(), Baseline(), Penalised((InputGradient(1.0),))])
def test_value_and_gradient_are_those_of_the_formula(inner: Objective) -> None:
    model, (x, y) = network(), batch()
    plain = run(inner, model, x, y)
    own = gradients(model).clone()
    log = run(EdgeRegularised(2.0, inner, epoch=30), model, x, y)
    torch.manual_seed(7)
    errors = written_out(model, x, torch.rand(len(x), dtype=torch.double))
    found = torch.autograd.grad(errors.mean(), list(model.parameters()), materialize_grads=True)
    expected = own + 2.0 * (1 + 0.09 * 30) * torch.cat([g.flatten() for g in found])
    torch.testing.assert_close(gradients(model), expected, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(log.pop("edge"), errors.mean().detach(), rtol=1e-10, atol=0)
    torch.testing.assert_close(log, plain)
    assert (gradients(model) - own).norm() > 0.1 * own.norm()


def test_gradient_is_the_finite_difference_of_the_value() -> None:
    model, (x, y) = network(), batch()
    objective = EdgeRegularised(1.0, Aside(), epoch=0)
    run(objective, model, x, y)
    found = torch.cat(
        [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten()
         for p in model.parameters()]
    )  # fmt: skip
    direction, step, values = torch.randn_like(found), 1e-6, []
    for sign in (1, -1):
        other = copy.deepcopy(model)
        flat = nn.utils.parameters_to_vector(model.parameters()) + sign * step * direction
        nn.utils.vector_to_parameters(flat, other.parameters())
        values.append(float(run(objective, other, x, y)["edge"]))
    expected = (values[0] - values[1]) / (2 * step)
    assert float(found @ direction) == pytest.approx(expected, rel=1e-6)


def test_one_pass_does_what_two_do_and_batch_norms_see_the_batch_once() -> None:
    (x, y), found = batch(), []
    for inner in (Penalised(), Baseline()):
        model = network(nn.BatchNorm2d(4), nn.Dropout(0.5))
        log = run(EdgeRegularised(1.0, inner), model, x, y)
        found.append((log, gradients(model), dict(model.named_buffers())))
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-12)
    alone = network(nn.BatchNorm2d(4), nn.Dropout(0.5))
    run(Penalised(), alone, x, y)
    torch.testing.assert_close(found[1][2], dict(alone.named_buffers()))


@dataclass
class TwoPasses:
    """Cross-entropy, and half of what it is at black images, as losses of two passes have it."""

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(model, x, y) + cross_entropy(model, torch.zeros_like(x), y) / 2

    def judged(self, model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


def test_a_loss_of_two_passes_gives_the_images_own_logits() -> None:
    model, (x, y), found = network(), batch(), []
    for inner in (Penalised(), Baseline()):
        model.zero_grad()
        torch.manual_seed(7)
        log = EdgeRegularised(1.0, inner).backward(model, x, y, TwoPasses())
        found.append((log, gradients(model).clone()))
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("inner", "passes"), [(Penalised(), 1), (Baseline(), 2), (Penalised((InputGradient(1.0),)), 2)]
)
def test_only_an_objective_without_penalties_shares_its_pass(inner: Objective, passes: int) -> None:
    model, (x, y), seen = network(), batch(), []
    model.register_forward_hook(lambda *_: seen.append(1))
    run(EdgeRegularised(1.0, inner).at(3.0), model, x, y)
    assert len(seen) == passes


def test_a_batch_of_6_is_two_accumulated_ones() -> None:
    model, (x, y) = network(), batch()
    objective = EdgeRegularised(1.0, Penalised())
    run(objective, model, x, y)
    whole = gradients(model).clone()
    model.zero_grad()
    torch.manual_seed(7)
    for part, share in ((slice(0, 4), 4 / 6), (slice(4, 6), 2 / 6)):
        before = [0 if p.grad is None else p.grad.clone() for p in model.parameters()]
        model.zero_grad()
        objective.backward(model, x[part], y[part], cross_entropy)
        for p, already in zip(model.parameters(), before, strict=True):
            p.grad = already + share * p.grad  # type: ignore[operator]
    torch.testing.assert_close(gradients(model), whole, rtol=1e-10, atol=1e-12)


def test_neither_the_gradients_length_nor_the_contrast_matters() -> None:
    model, (x, _) = nn.Sequential(nn.Flatten(), nn.Linear(3 * 48, 1)).double(), batch()
    numbers = torch.rand(len(x))
    before = edge_errors(model(x.requires_grad_()), x, numbers).detach()
    nn.utils.vector_to_parameters(
        1e-4 * nn.utils.parameters_to_vector(model.parameters()), model.parameters()
    )
    pale = (0.4 + 0.01 * x.detach()).requires_grad_()
    torch.testing.assert_close(edge_errors(model(pale), pale, numbers).detach(), before)


def test_the_error_is_0_for_edges_themselves_and_4_for_their_opposite() -> None:
    x = torch.rand(1, 3, 6, 8, dtype=torch.double, requires_grad=True)
    edges = edge_map(x)
    for sign, expected in ((3.0, 0.0), (-0.1, 4.0)):
        logits = (sign * edges * x).sum().view(1, 1)
        assert float(edge_errors(logits, x, torch.rand(1))) == pytest.approx(expected, abs=1e-12)


def test_flat_images_and_dead_gradients_stay_finite() -> None:
    model, (x, y) = network().float(), batch()
    flat = torch.full_like(x, 0.7).float()
    log = run(EdgeRegularised(1.0, Aside()), model, flat, y)
    assert float(log["edge"]) == pytest.approx(1)
    assert float(gradients(model).abs().max()) < 1e-4
    nn.init.zeros_(model[-1].weight)  # type: ignore[arg-type]
    for images, expected in ((x.float(), 1.0), (flat, 0.0)):
        log = run(EdgeRegularised(1.0, Aside()), model, images, y)
        assert float(log["edge"]) == pytest.approx(expected)
        assert not gradients(model).any()


def test_unit_size_is_each_samples_own() -> None:
    field = torch.randn(3, 2, 4, 4, dtype=torch.double)
    scaled = field * torch.tensor([1.0, 1e-5, 1e5]).view(3, 1, 1, 1)
    unit = of_unit_size(scaled, 1e-12)
    torch.testing.assert_close(unit.square().mean((1, 2, 3)), torch.ones(3, dtype=torch.double))
    torch.testing.assert_close(unit, of_unit_size(field, 1e-12))


# The class that is drawn


def test_classes_follow_the_softmax_at_temperature_one_half() -> None:
    logits = torch.tensor([0.3, -0.5, 1.0])
    numbers = (torch.arange(10000, dtype=torch.double) + 0.5) / 10000
    drawn = drawn_classes(logits.expand(10000, 3), numbers)
    shares = torch.bincount(drawn, minlength=3) / 10000
    torch.testing.assert_close(shares, (2 * logits).softmax(0), rtol=0, atol=1e-4)


def test_impossible_classes_are_not_drawn_and_the_last_is_the_end() -> None:
    logits = torch.tensor([[-1e4, 0.0, -1e4], [-1e4, -1e4, 0.0]])
    for number in (0.0, 0.5, 1 - 2**-53):
        numbers = torch.full((2,), number, dtype=torch.double)
        assert drawn_classes(logits, numbers).tolist() == [1, 2]


def test_another_seed_draws_other_classes() -> None:
    model, (x, y) = network(), batch()
    values = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        log = EdgeRegularised(1.0, Aside()).backward(model, x, y, cross_entropy)
        values.append(float(log["edge"]))
    assert values[0] == values[1] != values[2]


# Weights and flags


def test_the_weight_grows_from_1_to_19_over_200_epochs() -> None:
    objective = EdgeOptions(0.5).around(Aside())
    assert isinstance(objective, EdgeRegularised)
    assert objective.weight == 0.5 * 19  # as at the end, until it is asked
    assert objective.at(0).weight == 0.5
    assert objective.at(10.5).weight == pytest.approx(0.5 * (1 + 0.09 * 10.5))
    assert objective.at(100).at(10).weight == pytest.approx(0.5 * 1.9)
    assert objective.at(200).weight == objective.at(1000).weight == 0.5 * 19
    assert objective.at(3).inner == Aside(3)


def test_the_epoch_reaches_the_gradient() -> None:
    model, (x, y) = network(), batch()
    found = []
    for epoch in (0.0, 100.0):
        run(EdgeRegularised(1.0, Aside()).at(epoch), model, x, y)
        found.append(gradients(model).clone())
    torch.testing.assert_close(found[1], 10 * found[0])


def test_it_is_off_unless_asked_for() -> None:
    assert not EdgeOptions().active
    assert EdgeOptions(1.0).active
    assert EdgeOptions(0.5).label == "edge0.5"
    with pytest.raises(UserError, match="--edge_lamb must be at least 0"):
        EdgeOptions(-1.0)


def test_images_are_left_alone_and_frozen_weights_too() -> None:
    model, (x, y) = network(), batch()
    model[0].weight.requires_grad_(False)  # type: ignore[union-attr]
    before = x.clone()
    for inner in (Penalised(), Baseline()):
        run(EdgeRegularised(1.0, inner), model, x, y)
        assert torch.equal(x, before)
        assert not x.requires_grad
        assert x.grad is None
        assert model[0].weight.grad is None


def test_what_gives_no_logits_is_refused_in_a_sentence() -> None:
    model, (x, y) = nn.Conv2d(3, 2, 3).double(), batch()
    with pytest.raises(UserError, match=r"logits \(B, classes\), and this one gave \(6, 2, 4, 6\)"):
        EdgeRegularised(1.0, Aside()).backward(model, x, y, cross_entropy)
