"""GNP, SAM and SAGM: against the formulas written out plainly, and nothing left behind."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustbench_gpm.attacks.pgd import PGD
from robustbench_gpm.core import Loss, UserError
from robustbench_gpm.losses import cross_entropy
from robustbench_gpm.objectives import AdversarialTraining, FlowGradient, Objective, Penalised
from robustbench_gpm.objectives.parameter_gradient import GNP, GNPOptions
from robustbench_gpm.objectives.sagm import SAGM, SAGMOptions

PENALISED = Penalised((FlowGradient(30000.0),))  # draws a random start
STILL = Penalised((FlowGradient(30000.0, 0.0),))  # draws nothing
EVERY = {
    "sam": lambda inner: GNP(1.0, 0.1, inner),
    "gnp": lambda inner: GNP(0.8, 0.1, inner),
    "asam": lambda inner: GNP(1.0, 0.5, inner, adaptive=True),
    "sagm": lambda inner: SAGM(0.05, 0.001, inner),
}
Make = Callable[[Objective], Objective]
every = pytest.mark.parametrize("make", EVERY.values(), ids=EVERY.keys())


def network() -> nn.Module:
    """With batch norm and dropout, in training mode."""
    stem = (nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Softplus(), nn.Dropout(0.3), nn.Flatten())
    return nn.Sequential(*stem, nn.Linear(4 * 16, 5)).double()


def smooth() -> nn.Module:
    """Of one image at a time, and without randomness."""
    return nn.Sequential(nn.Flatten(), nn.Linear(72, 6), nn.Softplus(), nn.Linear(6, 5)).double()


def batch(size: int = 6) -> tuple[Tensor, Tensor]:
    return torch.rand(size, 2, 6, 6, dtype=torch.double), torch.randint(0, 5, (size,))


def gradient_of(
    objective: Objective, model: nn.Module, x: Tensor, y: Tensor, seed: int = 5
) -> list[Tensor]:
    """On a copy of the model; the random draws are those of `seed`."""
    torch.manual_seed(seed)
    model = copy.deepcopy(model)
    model.zero_grad()
    objective.backward(model, x, y, cross_entropy)
    return [p.grad for p in model.parameters()]


def norm_of(gradient: list[Tensor]) -> Tensor:
    return torch.stack([g.norm() for g in gradient]).norm()


def moved_by(model: nn.Module, displacements: list[Tensor]) -> nn.Module:
    model = copy.deepcopy(model)
    with torch.no_grad():
        for p, displacement in zip(model.parameters(), displacements, strict=True):
            p.add_(displacement)
    return model


def flat(gradient: list[Tensor]) -> Tensor:
    return torch.cat([g.flatten() for g in gradient])


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@dataclass(frozen=True)
class Counted:
    """The mean loss, as `Penalised` takes it, and the number of passes."""

    passes: list[dict[str, Tensor]] = field(default_factory=list)
    fail_at: int = 0

    def backward(self, model: nn.Module, x: Tensor, y: Tensor, loss: Loss) -> dict[str, Tensor]:
        log = Penalised().backward(model, x, y, loss)
        self.passes.append(copy.deepcopy(model.state_dict()))
        if len(self.passes) == self.fail_at:
            raise RuntimeError("half way")
        return log


@pytest.mark.parametrize("inner", [Penalised(), PENALISED], ids=["mean", "flow gradient"])
def test_identities_hold_bit_for_bit(inner: Penalised) -> None:
    """With dropout, batch norm and a random start, each drawn alike in both passes."""
    model, (x, y) = network(), batch()
    g = gradient_of(inner, model, x, y)
    norm = norm_of(g)
    sam = gradient_of(inner, moved_by(model, [0.1 / norm * each for each in g]), x, y)
    assert not torch.allclose(flat(sam), flat(g), rtol=1e-3)
    assert same(gradient_of(GNP(0.0, 0.1, inner), model, x, y), g)
    assert same(gradient_of(GNP(1.0, 0.1, inner), model, x, y), sam)
    assert same(gradient_of(GNPOptions(sam_rho=0.1).around(inner), model, x, y), sam)
    options = GNPOptions(gnp_alpha=0.8, gnp_r=0.1)
    mixed = [(1 - 0.8) * a + 0.8 * b for a, b in zip(g, sam, strict=True)]
    assert same(gradient_of(options.around(inner), model, x, y), mixed)


def test_sagm_is_its_formula_bit_for_bit() -> None:
    model, (x, y) = network(), batch()
    g = gradient_of(PENALISED, model, x, y)
    scale = 0.05 / norm_of(g) - 0.02
    other = gradient_of(PENALISED, moved_by(model, [scale * each for each in g]), x, y)
    mean = [(a + b) / 2 for a, b in zip(g, other, strict=True)]
    options = SAGMOptions(sagm_rho=0.05, sagm_alpha=0.02)
    assert same(gradient_of(options.around(PENALISED), model, x, y), mean)


def test_alpha_0_takes_one_pass_and_anything_else_two() -> None:
    model, (x, y) = network(), batch()
    for alpha, passes in ((0.0, 1), (0.5, 2), (1.0, 2)):
        inner = Counted()
        GNP(alpha, 0.1, inner).backward(model, x, y, cross_entropy)
        assert len(inner.passes) == passes


def test_gnp_tends_to_the_gradient_of_loss_plus_gradient_norm() -> None:
    """Double backward through lambda * ||dL/dw||; the error falls as r does."""
    model, (x, y), lamb = smooth(), batch(), 0.3
    weights = list(model.parameters())
    loss = cross_entropy(model, x, y).mean()
    g = torch.autograd.grad(loss, weights, create_graph=True)
    total = loss + lamb * flat(list(g)).norm()
    exact = flat(list(torch.autograd.grad(total, weights)))
    errors = []
    for r in (1e-2, 1e-3, 1e-4):
        got = flat(gradient_of(GNP(lamb / r, r, Penalised()), model, x, y))
        errors.append(float((got - exact).norm() / exact.norm()))
    assert (exact - flat(list(g))).norm() > 0.05 * exact.norm()
    assert errors[0] < 0.01
    assert errors[1] / errors[0] == pytest.approx(0.1, rel=0.1)
    assert errors[2] / errors[1] == pytest.approx(0.1, rel=0.1)


@pytest.mark.parametrize("inner", [Penalised(), STILL], ids=["mean", "flow gradient"])
def test_gnp_is_the_finite_difference_of_the_penalised_value(inner: Penalised) -> None:
    model, (x, y), lamb, r, step = smooth(), batch(), 0.3, 1e-6, 1e-5
    g = gradient_of(GNP(lamb / r, r, inner), model, x, y)
    direction = [torch.randn_like(each) for each in g]

    def value(sign: int) -> float:
        there = moved_by(model, [sign * step * d for d in direction])
        gradient = gradient_of(inner, there, x, y)
        log = inner.backward(there, x, y, cross_entropy)
        loss = float(log["loss"]) + sum(p.weight * float(log[p.tag]) for p in inner.penalties)
        return loss + lamb * float(norm_of(gradient))

    expected = (value(1) - value(-1)) / (2 * step)
    assert float(flat(g) @ flat(direction)) == pytest.approx(expected, rel=1e-4)


def test_asam_perturbs_each_weight_by_its_own_size() -> None:
    model, (x, y) = network(), batch()
    g = gradient_of(PENALISED, model, x, y)
    size = [p.detach().abs() + 0.01 for p in model.parameters()]
    norm = flat([t * each for t, each in zip(size, g, strict=True)]).norm()
    steps = [0.5 * t**2 * each / norm for t, each in zip(size, g, strict=True)]
    expected = gradient_of(PENALISED, moved_by(model, steps), x, y)
    options = GNPOptions(sam_rho=0.5, adaptive_sharpness=True)
    got = gradient_of(options.around(PENALISED), model, x, y)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(flat(got), flat(gradient_of(GNP(1, 0.5, PENALISED), model, x, y)))


def test_one_group_of_the_whole_batch_is_the_plain_one() -> None:
    model, (x, y) = network(), batch()
    for m in (6, 100):
        grouped = gradient_of(GNP(0.8, 0.1, PENALISED, group=m), model, x, y)
        assert same(grouped, gradient_of(GNP(0.8, 0.1, PENALISED), model, x, y))


@pytest.mark.parametrize("m", [1, 2, 3])
def test_groups_are_averaged_by_their_sizes(m: int) -> None:
    """Of 7 images, the last group is of one."""
    model, (x, y), inner = smooth(), batch(7), STILL
    plain = GNP(0.8, 0.1, inner)
    parts = list(torch.arange(7).split(m))
    expected = sum(
        len(rows) / 7 * flat(gradient_of(plain, model, x[rows], y[rows])) for rows in parts
    )
    options = GNPOptions(gnp_alpha=0.8, gnp_r=0.1, m_sharpness=m)
    torch.testing.assert_close(flat(gradient_of(options.around(inner), model, x, y)), expected)
    log = options.around(inner).backward(model, x, y, cross_entropy)
    at_the_weights = inner.backward(model, x, y, cross_entropy)
    torch.testing.assert_close({name: log[name] for name in at_the_weights}, at_the_weights)
    assert not torch.allclose(expected, flat(gradient_of(plain, model, x, y)))


@every
def test_buffers_and_modes_are_as_one_pass_leaves_them(make: Make) -> None:
    model, (x, y) = network(), batch()
    model[3].eval()
    other, modes = copy.deepcopy(model), [module.training for module in model.modules()]
    buffers, weights = dict(model.named_buffers()), copy.deepcopy(list(model.parameters()))
    expected = Penalised().backward(other, x, y, cross_entropy)
    log = make(Penalised()).backward(model, x, y, cross_entropy)
    assert torch.equal(log["loss"], expected["loss"])
    assert int(model[1].num_batches_tracked) == 1
    for name, buffer in model.named_buffers():
        assert buffer is buffers[name]
        assert torch.equal(buffer, dict(other.named_buffers())[name])
    assert same(list(model.parameters()), weights)
    assert modes == [module.training for module in model.modules()]


def test_groups_leave_the_statistics_of_their_first_passes() -> None:
    model, (x, y) = network(), batch()
    other = copy.deepcopy(model)
    GNP(1.0, 0.1, Penalised(), group=2).backward(model, x, y, cross_entropy)
    for rows in torch.arange(6).split(2):
        Penalised().backward(other, x[rows], y[rows], cross_entropy)
    assert same(list(model.buffers()), list(other.buffers()))


class Restless(nn.Module):
    """Draws from every global generator, and keeps state as batch norms do, and as others might."""

    count: Tensor
    average: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[float, ...]] = []
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("average", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        drawn = (float(torch.rand(())), float(np.random.rand()), random.random())
        self.seen.append((*drawn, float(self.count), float(self.average)))
        self.count += 1
        self.average = 0.9 * self.average + 1
        if len(self.seen) == 2:
            torch.rand(17)  # a second pass that draws more must not show afterwards
        return x


@every
def test_both_passes_draw_alike_and_one_of_them_counts(make: Make) -> None:
    model, (x, y), masks, ends = network(), batch(), [], []
    model.append(Restless())
    model[3].register_forward_hook(lambda _, inputs, output: masks.append(output == 0))
    for objective in (make(PENALISED), PENALISED):
        for seed in (torch.manual_seed, np.random.seed, random.seed):
            seed(3)
        model[-1] = restless = Restless()
        objective.backward(model, x, y, cross_entropy)
        ends.append((float(torch.rand(())), float(np.random.rand()), random.random()))
        assert len(set(restless.seen)) == 1
        assert (float(restless.count), float(restless.average)) == (1, 1)
    assert len(masks) == 3
    assert torch.equal(masks[0], masks[1])
    assert 0 < int(masks[0].sum()) < masks[0].numel()
    assert ends[0] == ends[1]


@every
@pytest.mark.parametrize("fail_at", [1, 2])
def test_nothing_is_left_behind_when_a_pass_fails(make: Make, fail_at: int) -> None:
    model, (x, y) = network().float(), batch()
    kept = [torch.rand_like(p) for p in model.parameters()]
    for p, gradient in zip(model.parameters(), kept, strict=True):
        p.grad = gradient.clone()
    weights, inner = copy.deepcopy(list(model.parameters())), Counted(fail_at=fail_at)
    with pytest.raises(RuntimeError, match="half way"):
        make(inner).backward(model, x.float(), y, cross_entropy)
    assert same(list(model.parameters()), weights)
    assert same([p.grad for p in model.parameters()], kept)
    statistics = inner.passes[0]["1.running_mean"]
    assert torch.equal(model[1].running_mean, statistics)
    assert fail_at == 1 or not torch.equal(inner.passes[1]["0.weight"], weights[0])


class Partly(nn.Module):
    """A network with a bias that is not trained, and a weight that nothing depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.idle = network(), nn.Parameter(torch.ones(2))
        self.net[5].bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


@every
def test_gradients_are_added_and_what_has_none_is_left_alone(make: Make) -> None:
    model, (x, y), inner = Partly(), batch(), Counted()
    alone = gradient_of(make(Penalised()), model, x, y)
    stale = model.net[5].bias.grad = torch.ones(5, dtype=torch.double)
    before = model.net[0].weight.grad = torch.full_like(model.net[0].weight, 0.25)
    torch.manual_seed(5)
    make(inner).backward(model, x, y, cross_entropy)
    assert model.net[0].weight.grad is before
    assert torch.equal(before, alone[1] + 0.25)
    assert model.net[5].bias.grad is stale
    assert bool((stale == 1).all())
    assert model.idle.grad is None
    one, two = inner.passes
    assert torch.equal(one["net.5.bias"], two["net.5.bias"])
    assert torch.equal(one["idle"], two["idle"])
    assert not torch.equal(one["net.5.weight"], two["net.5.weight"])


@every
def test_a_gradient_of_zero_moves_nothing_and_is_finite(make: Make) -> None:
    model, (x, y) = smooth(), batch()
    nn.init.zeros_(model[3].weight)  # the loss then asks for nothing but a bias
    model[3].requires_grad_(False)
    inner = Counted()
    log = make(inner).backward(model, x, y, cross_entropy)
    assert float(log["gradient_norm"]) == 0
    assert float(model[1].weight.grad.abs().max()) == 0
    assert all(torch.equal(inner.passes[0][name], p) for name, p in inner.passes[1].items())


@every
def test_within_adversarial_training_the_images_are_attacked_once(make: Make) -> None:
    model, (x, y) = network().eval(), batch()
    calls: list[Tensor] = []

    class Once(PGD):
        def __call__(self, *given: Any, **options: Any) -> Tensor:
            calls.append(super().__call__(*given, **options))
            return calls[-1]

    attack = Once(random_start=True, steps=2, early_stop=False)
    inner = STILL
    got = gradient_of(AdversarialTraining(attack, 0.1, make(inner)), model, x, y)
    assert len(calls) == 1
    assert not torch.equal(calls[0], x)
    assert same(got, gradient_of(make(inner), model, calls[0], y))


class Noise(PGD):
    """A random start, and no more."""

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, **options: Any) -> Tensor:
        return x + options["budget"] * options["samples"].uniform(x)


@every
def test_around_adversarial_training_both_attacks_start_alike(make: Make) -> None:
    model, (x, y), seen = network(), batch(), []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    inner = AdversarialTraining(Noise(), 0.1, Penalised())
    make(inner).backward(model, x, y, cross_entropy)
    assert len(seen) == 2
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], x)


@every
def test_the_epoch_is_passed_on(make: Make) -> None:
    assert PENALISED.at(0.5) != PENALISED
    assert make(PENALISED).at(0.5) == make(PENALISED.at(0.5))


def test_flags_are_off_by_default_and_name_what_they_make() -> None:
    assert not GNPOptions().active
    assert not SAGMOptions().active
    inner = Penalised()
    assert GNPOptions(sam_rho=0.05).around(inner) == GNP(1.0, 0.05, inner)
    assert GNPOptions(gnp_alpha=0.8).around(inner) == GNP(0.8, 0.1, inner)
    assert SAGMOptions(sagm_rho=0.05).around(inner) == SAGM(0.05, 0.001, inner)
    options = {
        "sam0.05": GNPOptions(sam_rho=0.05),
        "gnp0.8r0.1": GNPOptions(gnp_alpha=0.8),
        "asam0.5m32": GNPOptions(sam_rho=0.5, adaptive_sharpness=True, m_sharpness=32),
        "sagm0.05": SAGMOptions(sagm_rho=0.05),
    }
    for label, option in options.items():
        assert option.active
        assert option.label == label


def test_wrong_flags_are_told_in_a_sentence() -> None:
    with pytest.raises(UserError, match="--gnp_alpha and --sam_rho exclude each other"):
        GNPOptions(gnp_alpha=0.8, sam_rho=0.05)
    with pytest.raises(UserError, match="need --gnp_alpha or --sam_rho"):
        GNPOptions(m_sharpness=4)
    with pytest.raises(UserError, match="need --gnp_alpha or --sam_rho"):
        GNPOptions(adaptive_sharpness=True)
    with pytest.raises(UserError, match="--gnp_r must be above 0, not 0"):
        GNPOptions(gnp_alpha=0.8, gnp_r=0.0)
    with pytest.raises(UserError, match="--m_sharpness must be at least 1, not 0"):
        GNPOptions(sam_rho=0.05, m_sharpness=0)
    with pytest.raises(UserError, match="--sagm_rho must be at least 0, not -1"):
        SAGMOptions(sagm_rho=-1.0)
