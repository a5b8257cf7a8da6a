"""Minimum-norm attacks beside closed forms and beside foolbox's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal, get_args

import eagerpy as ep
import foolbox
import pytest
import torch
from attack_stage import a_net, assert_same_state, fooled, state_of, the_data, unsettle
from test_attacks_oracles import Linear, noise
from test_attacks_table import Treacherous, passes_counted
from torch import Tensor, nn

from robustbench_gpm.attacks.carlini_wagner import CarliniWagner
from robustbench_gpm.attacks.ddn import DDN
from robustbench_gpm.attacks.fmn import FMN
from robustbench_gpm.attacks.minimum_norm import MinimumNormAttack
from robustbench_gpm.core import Samples, UserError

Norm = Literal["l0", "l1", "l2", "linf"]
NORMS: tuple[Norm, ...] = get_args(Norm)
LARGE = {"linf": 0.3, "l2": 3.0, "l1": 12.0, "l0": 40.0}
BRISK = CarliniWagner(steps=60, search_steps=5, learning_rate=0.05, initial_constant=1.0)
ATTACKS: tuple[MinimumNormAttack, ...] = (*(FMN(norm) for norm in NORMS), DDN(), BRISK)


def named(attack: MinimumNormAttack) -> str:
    return f"{type(attack).__name__}-{attack.norm}"


each = pytest.mark.parametrize("attack", ATTACKS, ids=named)


def linear(norm: str) -> tuple[Linear, Tensor, Tensor, Tensor]:
    """A linear model, images of its class 1, and how far the nearest images of class 0 are."""
    x = 0.5 + 0.04 * noise(6, 1, 4, 4, seed=1).clamp(-1, 1)
    weight = noise(1, 4, 4)
    lowest = 3.0 if norm == "l0" else 0.2
    model = Linear(weight, lowest - float((weight * x).flatten(1).sum(1).min()))
    score, steep = model.score(x), weight.abs()
    if norm == "l0":
        gains = (steep * torch.where(weight > 0, x, 1 - x)).flatten(1)
        fall = gains.sort(1, descending=True).values.cumsum(1)
        best = (fall <= score[:, None]).sum(1).double() + 1
    else:
        slope = {"linf": steep.sum(), "l2": steep.norm(), "l1": steep.max()}[norm]
        best = score / slope
    return model, x, torch.ones(6, dtype=torch.int64), best


def small(classes: int) -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, classes)
    ).double()


def the_nearest(attack: MinimumNormAttack, net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """How far (B,) the images found are; infinitely far where they do not fool."""
    found = attack.nearest(net, x, y)
    return distances(net, x, y, found, attack.norm)


def distances(net: nn.Module, x: Tensor, y: Tensor, found: Tensor, norm: str) -> Tensor:
    size = FMN(norm).threat.size(found - x)  # type: ignore[arg-type]
    return size.masked_fill(~fooled(net, found, y), torch.inf)


@pytest.mark.parametrize("attack", [*ATTACKS[:-1], CarliniWagner(initial_constant=1.0)], ids=named)
def test_finds_the_nearest_image_of_a_linear_model(attack: MinimumNormAttack) -> None:
    model, x, y, best = linear(attack.norm)
    ratio = the_nearest(attack, model, x, y) / best
    assert (ratio <= 1.1).all(), ratio
    assert (ratio >= 1 - 1e-9).all()


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, Tensor, Tensor]:
    """A small network trained to tell blobs apart, in float32, and 32 images it gets right."""
    stream = torch.manual_seed(3)
    centres = torch.rand(4, 1, 8, 8, generator=stream)
    y = torch.arange(600) % 4
    x = (centres[y] + 0.3 * torch.randn(600, 1, 8, 8, generator=stream)).clamp(0, 1)
    net = nn.Sequential(
        nn.Conv2d(1, 6, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(54, 24), nn.Tanh(),
        nn.Linear(24, 4),
    )  # fmt: skip
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimiser.step()
    right = torch.nonzero(~fooled(net, x, y)).squeeze(1)[:32]
    return net.eval(), x[right], y[right]


Theirs = Callable[[int], foolbox.attacks.base.MinimizationAttack]
PAIRS: list[tuple[MinimumNormAttack, Theirs]] = [
    (FMN("l0"), lambda steps: foolbox.attacks.L0FMNAttack(steps=steps)),
    (FMN("l1"), lambda steps: foolbox.attacks.L1FMNAttack(steps=steps)),
    (FMN("l2"), lambda steps: foolbox.attacks.L2FMNAttack(steps=steps)),
    (FMN("linf"), lambda steps: foolbox.attacks.LInfFMNAttack(steps=steps)),
    (DDN(), lambda steps: foolbox.attacks.DDNAttack(steps=steps)),
    (
        CarliniWagner(learning_rate=0.05, initial_constant=0.1),
        lambda steps: foolbox.attacks.L2CarliniWagnerAttack(
            steps=steps, stepsize=0.05, initial_const=0.1
        ),
    ),
]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: named(pair[0]))
@pytest.mark.parametrize("steps", [60, 100])
def test_finds_images_no_farther_than_foolbox_does(
    pair: tuple[MinimumNormAttack, Theirs], steps: int, trained: tuple[nn.Module, Tensor, Tensor]
) -> None:
    net, x, y = trained
    attack = replace(pair[0], steps=steps)
    ours = the_nearest(attack, net, x, y)
    model = foolbox.PyTorchModel(net.eval(), bounds=(0, 1), device="cpu")
    criterion = foolbox.criteria.Misclassification(ep.astensor(y))
    raw = pair[1](steps).run(model, ep.astensor(x), criterion).raw.detach()
    theirs = distances(net, x, y, raw, attack.norm)
    assert ours.isfinite().sum() >= theirs.isfinite().sum() - 1
    assert ours.isfinite().sum() >= 31
    assert ours.median() <= theirs.median() * 1.002


def test_no_attack_at_all_would_not_pass() -> None:
    class Idle(FMN):
        def search(self, model: nn.Module, x: Tensor, *_: object) -> Tensor:
            return x

    model, x, y, _ = linear("l2")
    assert the_nearest(Idle(), model, x, y).isinf().all()


@each
@pytest.mark.parametrize("classes", [2, 3])
def test_few_classes_are_enough(attack: MinimumNormAttack, classes: int) -> None:
    net, x = small(classes), torch.rand(5, 1, 4, 4, dtype=torch.float64)
    y = net(x).argmax(1)
    assert the_nearest(attack, net, x[:1], y[:1]).shape == (1,)
    assert the_nearest(attack, net, x, y).isfinite().sum() >= 3


@each
def test_more_effort_finds_nearer_images(attack: MinimumNormAttack) -> None:
    net = a_net()
    x, y = the_data(net)
    hasty = the_nearest(replace(attack, steps=1), net, x, y)
    assert (the_nearest(attack, net, x, y) <= hasty).all()
    assert (the_nearest(attack, net, x, y) < hasty).any()


@each
def test_a_budget_keeps_the_search_inside_it(attack: MinimumNormAttack) -> None:
    net = a_net()
    x, y = the_data(net)
    far = the_nearest(attack, net, x, y)
    budget = float(far.median())
    images = attack(net, x, y, budget=budget)
    assert (attack.threat.size(images - x) <= budget * (1 + 1e-9)).all()
    assert fooled(net, images, y)[far < 0.95 * budget].all()
    assert images.min() >= 0
    assert images.max() <= 1
    if not isinstance(attack, CarliniWagner):
        found = attack.nearest(net, x, y, budget=budget)
        assert (attack.threat.size(found - x) <= budget * (1 + 1e-9)).all()
    assert torch.equal(attack(net, x, y, budget=0.0), x)


@each
def test_the_batch_and_the_order_do_not_matter(attack: MinimumNormAttack) -> None:
    net = a_net()
    x, y = the_data(net)
    y[2] = (y[2] + 1) % 4  # one is fooled from the start and leaves the batch
    whole = attack.nearest(net, x, y)
    assert torch.equal(whole[2], x[2])
    order = torch.randperm(len(x), generator=torch.manual_seed(3))
    for chunk in (*order[:6].split(6), *order[6:].split(1)):
        part = attack.nearest(net, x[chunk], y[chunk], samples=Samples(chunk))
        torch.testing.assert_close(part, whole[chunk], rtol=0, atol=1e-9)


@each
def test_the_book_holds_every_pass_and_the_model_is_left_alone(attack: MinimumNormAttack) -> None:
    net = a_net()
    x, y = the_data(net)
    y[2] = (y[2] + 1) % 4
    unsettle(net)
    before, random = state_of(net), torch.get_rng_state()
    samples = Samples(range(len(x)))
    with passes_counted(net) as counted:
        attack(net, x, y, budget=LARGE[attack.norm], samples=samples)
    assert int(samples.forwards.sum()) == counted["forwards"] > 0
    assert int(samples.backwards.sum()) == counted["backwards"] > 0
    assert int(samples.forwards[2]) == 1
    assert_same_state(before, state_of(net))
    assert torch.equal(random, torch.get_rng_state())


@each
def test_odd_gradients_and_empty_batches_are_no_trouble(attack: MinimumNormAttack) -> None:
    net = a_net()
    x, y = the_data(net)
    images = attack(Treacherous(net), x, y, budget=LARGE[attack.norm])
    assert torch.isfinite(images).all()
    assert fooled(net, images, y).sum() >= 4
    assert attack(net, x[:0], y[:0], budget=1.0).shape == x[:0].shape
    assert attack.nearest(net.float(), x.float(), y).dtype == torch.float32


class Flat(nn.Module):
    """A model without gradients around images whose right class is sure; beyond, it is fooled."""

    def forward(self, x: Tensor) -> Tensor:
        rise = (x - 0.5).square().flatten(1).sum(1) - 1.0
        return torch.stack((0 * rise, 300 * (rise > 0) * rise - 150), dim=1).float()


def test_ddn_leaves_a_plateau_in_a_random_direction_of_the_samples_own() -> None:
    x, y = torch.full((4, 1, 4, 4), 0.5), torch.zeros(4, dtype=torch.int64)
    model = Flat()
    one, same, other = (
        DDN(steps=60).nearest(model, x, y, samples=Samples(range(4), seed)) for seed in (1, 1, 2)
    )
    assert (one - x).abs().amax() > 0
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_carlini_wagner_reaches_the_confidence_asked_for() -> None:
    model, x, y, _ = linear("l2")
    sure = CarliniWagner(confidence=0.5, initial_constant=1.0).nearest(model, x, y)
    assert (model.score(sure) <= -0.5).all()
    assert (model.score(CarliniWagner(initial_constant=1.0).nearest(model, x, y)) > -0.1).all()


def test_carlini_wagner_searches_for_the_constant() -> None:
    model, x, y, best = linear("l2")
    stingy = CarliniWagner(initial_constant=1e-5, steps=100)
    assert (the_nearest(replace(stingy, search_steps=3), model, x, y) > 1e3).all()
    assert (the_nearest(replace(stingy, search_steps=12), model, x, y) < 1.1 * best).all()


def test_hyper_parameters_are_checked() -> None:
    for wrong in ({"norm": "l3"}, {"steps": 0}, {"gamma": -1.0}):
        with pytest.raises(UserError, match="must be"):
            FMN(**wrong)  # type: ignore[arg-type]
    for attack in (DDN(), CarliniWagner()):
        with pytest.raises(UserError, match="norm must be one of l2"):
            replace(attack, norm="linf")
