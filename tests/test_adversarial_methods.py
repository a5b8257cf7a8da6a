"""FGSM-RS, free training, AWP and their flags, against definitions written out plainly."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import pytest
import torch
from adversarial_stage import (
    FLOW,
    INTENSITY,
    Halves,
    Loose,
    attacked,
    batch,
    gradients,
    kl,
    network,
    run,
    same_state,
    slope,
    trades,
    without_draws,
)
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy as mean_cross_entropy

from robustbench_gpm.attacks.fgsm import FGSM
from robustbench_gpm.attacks.flow import FlowPGD
from robustbench_gpm.attacks.pgd import PGD
from robustbench_gpm.core import Loss, Samples, UserError
from robustbench_gpm.deformation import warp
from robustbench_gpm.losses import cross_entropy
from robustbench_gpm.objectives import (
    AdversarialOptions,
    AdversarialTraining,
    InputGradient,
    Objective,
    Penalised,
)
from robustbench_gpm.objectives.attacked import fresh_samples
from robustbench_gpm.objectives.awp import AdversarialWeights, WeightPerturbed
from robustbench_gpm.objectives.free import FreeTraining
from robustbench_gpm.objectives.trades import Trades

# FGSM-RS


def fgsm_rs(attack: str | None = None, budget: float = 0.1) -> Objective:
    options = AdversarialOptions("fgsm-rs", budget, adversarial_attack=attack)
    return options.around(Penalised())


@pytest.mark.parametrize("attack", [None, "flow-pgd"])
def test_fgsm_rs_is_one_step_from_a_random_start_on_the_model_as_it_trains(
    attack: str | None,
) -> None:
    model, (x, y) = without_draws(), batch()
    plain = copy.deepcopy(model)
    run(fgsm_rs(attack), model, x, y)
    torch.manual_seed(3)
    samples = fresh_samples(x)
    delta = 0.1 * samples.uniform(x)

    def shown(delta: Tensor) -> Tensor:
        return warp(x, delta) if attack else x + delta

    if not attack:
        delta = (x + delta).clamp(0, 1) - x
    delta.requires_grad_()
    own_statistics = copy.deepcopy(plain)  # the attack's pass leaves the model's as they are
    (g,) = torch.autograd.grad(mean_cross_entropy(own_statistics(shown(delta)), y), delta)
    delta = (delta + 0.125 * g.sign()).clamp(-0.1, 0.1).detach()
    images = shown(delta).clamp(0, 1)
    torch.testing.assert_close(
        gradients(model), slope(plain, lambda net: mean_cross_entropy(net(images), y))
    )
    same_state(model, plain)


def test_fgsm_rs_attacks_the_network_that_dropout_has_left_for_the_training_pass() -> None:
    """All units but those dropped at the start of both passes."""
    seen: list[Tensor] = []
    model, (x, y) = network(), batch()
    dropout = model[3]
    assert isinstance(dropout, nn.Dropout)
    dropout.register_forward_hook(lambda *a: seen.append((a[2] == 0).detach()))
    run(fgsm_rs(), model, x, y)
    assert len(seen) == 2
    assert torch.equal(seen[0], seen[1])
    assert bool(seen[0].any())


# Free training


def free(attack: PGD | FlowPGD | None = None, inner: Objective | None = None) -> FreeTraining:
    return FreeTraining(attack or PGD(step_size=1.0), 0.1, inner or Penalised())


@pytest.mark.parametrize("replays", [1, 3])
@pytest.mark.parametrize("kind", ["linf", "l2", "flow"])
def test_free_training_is_its_loop(kind: str, replays: int) -> None:
    """Two batches, the second smaller, and a step of the weights after each replay."""
    step = 0.6
    attack = FlowPGD(step_size=step) if kind == "flow" else PGD(kind, step_size=step)  # type: ignore[arg-type]
    model = without_draws()
    plain, objective = copy.deepcopy(model), free(attack).at(0.0)
    batches = [batch(6), batch(4), batch(6)]
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    for x, y in batches:
        for _ in range(replays):
            optimiser.zero_grad()
            objective.backward(model, x, y, cross_entropy)
            optimiser.step()

    delta = torch.zeros(6, 2, 6, 6, dtype=torch.double)
    optimiser = torch.optim.SGD(plain.parameters(), 0.1)
    for x, y in batches:
        for _ in range(replays):
            d = delta[: len(x)].clone()
            if kind != "flow":
                d = (x + d).clamp(0, 1) - x
            d.requires_grad_()
            images = warp(x, d) if kind == "flow" else x + d
            optimiser.zero_grad()
            mean_cross_entropy(plain(images), y).backward()
            optimiser.step()
            assert d.grad is not None
            g, d = d.grad, d.detach()
            if kind == "l2":
                d = d + step * 0.1 * g / g.flatten(1).norm(dim=1)[:, None, None, None]
                size = d.flatten(1).norm(dim=1)[:, None, None, None]
                d = d * (0.1 / size).clamp_max(1)
            else:
                d = (d + step * 0.1 * g.sign()).clamp(-0.1, 0.1)
            delta[: len(x)] = d
    same_state(model, plain)
    torch.testing.assert_close(objective.kept.perturbation, delta)


def test_the_first_replay_is_clean_and_the_second_fgsm_adversarial_training() -> None:
    """Where the weights have not moved in between."""
    model, (x, y) = without_draws().eval(), batch()
    plain, objective = copy.deepcopy(model), free()
    for expected in (Penalised(), AdversarialTraining(FGSM(), 0.1, Penalised())):
        model.zero_grad()
        plain.zero_grad()
        run(objective, model, x, y)
        run(expected, plain, x, y)
        torch.testing.assert_close(gradients(model), gradients(plain))


def test_free_training_costs_one_pass_a_replay() -> None:
    passes: list[None] = []
    model, (x, y) = network(), batch()
    model.register_forward_hook(lambda *_: passes.append(None))
    run(free(), model, x, y)
    assert len(passes) == 1


def test_the_perturbation_lasts_for_an_epoch() -> None:
    """So that a run taken up again where an epoch begins is the run that went through."""
    model, (x, y) = without_draws(), batch()
    through = free()
    for epoch in (0.0, 0.5, 0.99):
        run(through.at(epoch), model, x, y)
    kept = through.kept.perturbation
    assert kept is not None
    assert bool(kept.any())
    resumed = free()
    for objective in (through.at(1.0), resumed.at(1.0)):
        net = copy.deepcopy(model)
        net.zero_grad()
        run(objective, net, x, y)
    assert through.kept.perturbation is not None
    assert resumed.kept.perturbation is not None
    assert torch.equal(through.kept.perturbation, resumed.kept.perturbation)
    assert not torch.equal(through.kept.perturbation, kept)
    assert "tensor" not in repr(through)


@dataclass(frozen=True)
class WeightsAlone:
    """The mean loss, with a gradient of something else to the images and none of the loss."""

    def backward(self, model: nn.Module, x: Tensor, y: Tensor, loss: Loss) -> dict[str, Tensor]:
        x = x.detach().requires_grad_()
        mean = loss(model, x, y).mean()
        torch.autograd.grad(model(x)[:, 0].sum(), x)
        parameters = list(model.parameters())
        for p, g in zip(parameters, torch.autograd.grad(mean, parameters), strict=True):
            p.grad = g
        return {"loss": mean.detach()}

    def at(self, epoch: float) -> WeightsAlone:
        return self


@pytest.mark.parametrize(
    "inner",
    [
        Penalised((InputGradient(50.0),)),
        Halves(Penalised()),
        WeightPerturbed(0.5, Penalised()),
        WeightsAlone(),
    ],
    ids=["penalised", "halves", "awp", "weights"],
)
def test_the_perturbation_follows_the_loss_at_the_weights_whatever_is_made_of_it(
    inner: Objective,
) -> None:
    model, (x, y) = without_draws().eval(), batch()
    plain, objective, other = copy.deepcopy(model), free(), free(inner=inner)
    for _ in range(2):
        run(objective, plain, x, y)
        run(other, model, x, y)
    assert objective.kept.perturbation is not None
    torch.testing.assert_close(other.kept.perturbation, objective.kept.perturbation)


# AWP


def plain_awp(net: nn.Module, gamma: float, loss: Loose) -> Tensor:
    """The gradient at a network whose layers are moved by gamma ||w|| g/||g||."""
    moved = copy.deepcopy(net)
    found = torch.autograd.grad(loss(moved), list(moved.parameters()))
    with torch.no_grad():
        for p, g in zip(moved.parameters(), found, strict=True):
            if p.dim() > 1:
                p.add_(gamma * p.norm() * g / g.norm())
    return slope(moved, loss)


def test_awp_is_the_gradient_at_layers_moved_by_a_share_of_their_norm() -> None:
    model, (x, y) = without_draws(), batch()
    before, plain = copy.deepcopy(model), copy.deepcopy(model)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    objective = AdversarialWeights(awp_gamma=0.05).around(Penalised())
    log = run(objective, model, x, y)
    expected = plain_awp(plain, 0.05, lambda net: mean_cross_entropy(net(x), y))
    torch.testing.assert_close(gradients(model), 1 + expected)
    first = slope(plain, lambda net: mean_cross_entropy(net(x), y))  # which counts its statistics
    assert float((expected - first).norm() / first.norm()) > 1e-2
    for p, was in zip(model.parameters(), before.parameters(), strict=True):
        assert torch.equal(p, was)
    same_state(model, plain)
    torch.testing.assert_close(log["loss"], mean_cross_entropy(before(x), y).detach())


def test_awp_within_adversarial_training_attacks_images_once() -> None:
    model, (x, y) = without_draws(), batch()
    plain = copy.deepcopy(model)
    attack = replace(INTENSITY, random_start=False)
    run(AdversarialTraining(attack, 0.1, WeightPerturbed(0.05, Penalised())), model, x, y)
    images = attack(plain, x, y, budget=0.1)
    expected = plain_awp(plain, 0.05, lambda net: mean_cross_entropy(net(images), y))
    torch.testing.assert_close(gradients(model), expected)


def test_awp_within_trades_moves_the_weights_by_the_whole_loss() -> None:
    model, (x, y) = without_draws(), batch()
    plain, objective = copy.deepcopy(model), trades(FLOW, WeightPerturbed(0.05, Penalised()))
    other = attacked(objective, model, x, y)
    run(objective, model, x, y)

    def formula(net: nn.Module) -> Tensor:
        return mean_cross_entropy(net(x), y) + 6 * kl(net, x, other).mean()

    torch.testing.assert_close(gradients(model), plain_awp(plain, 0.05, formula))


def test_awp_without_gamma_is_off() -> None:
    assert not AdversarialWeights().active
    assert AdversarialWeights(awp_gamma=0.01).label == "awp0.01"
    model, plain, (x, y) = network(), network(), batch()
    run(WeightPerturbed(0.0, Penalised()), model, x, y)
    run(Penalised(), plain, x, y)
    assert torch.equal(gradients(model), gradients(plain))
    with pytest.raises(UserError, match="--awp_gamma must be at least 0"):
        AdversarialWeights(awp_gamma=-1.0)


# All of them


@pytest.mark.parametrize("objective", [trades(), trades(FLOW), fgsm_rs(), fgsm_rs("flow-pgd")])
def test_random_starts_follow_the_seed(objective: Objective) -> None:
    (x, y), losses = batch(), []
    for seed in (1, 1, 2):
        model = without_draws()
        torch.manual_seed(seed)
        objective.backward(model, x, y, cross_entropy)
        losses.append(gradients(model))
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])


def test_each_method_withstands_more_than_training_without_one() -> None:
    data = load_digits()
    x, y = torch.tensor(data.images).float()[:, None] / 16, torch.tensor(data.target)
    attack = replace(INTENSITY, norm="linf")
    options = {
        "baseline": None,
        "trades": Trades(attack, 0.15, 6.0, Penalised()),
        "fgsm-rs": fgsm_rs(budget=0.15),
        "free": FreeTraining(PGD(step_size=1.0), 0.15, Penalised()),
        "awp": AdversarialTraining(attack, 0.15, WeightPerturbed(0.01, Penalised())),
    }
    robust = {}
    for name, objective in options.items():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)
        )
        optimiser = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
        for _ in range(2 if name == "free" else 4):
            for rows in torch.randperm(1200).split(100):
                for _ in range(2 if name == "free" else 1):
                    optimiser.zero_grad()
                    method = objective or Penalised()
                    method.backward(net, x[rows], y[rows], cross_entropy)
                    optimiser.step()
        images = PGD(steps=10)(net, x[1200:1500], y[1200:1500], budget=0.15)
        robust[name] = float((net(images).argmax(1) == y[1200:1500]).double().mean())
    for name in set(options) - {"baseline"}:
        assert robust[name] > robust["baseline"] + 0.05, robust


# Flags


def test_flags_make_the_method_they_name() -> None:
    inner = Penalised()
    whole = {"steps": 10, "step_size": 0.25, "early_stop": False}
    made = AdversarialOptions(
        "trades", 0.03, 10, 0.25, adversarial_attack="pgd-l2", trades_beta=3.0
    ).around(inner)
    assert made == Trades(PGD("l2", **whole), 0.03, 3.0, inner)  # type: ignore[arg-type]
    options = AdversarialOptions("free", free_replays=4)
    assert options.replays == 4
    assert AdversarialOptions("trades").replays == 1
    made = options.around(inner)
    assert isinstance(made, FreeTraining)
    assert (made.attack.threat.name, made.attack.step_size, made.replays) == ("linf", 1.0, 4)
    assert made.budget == 8 / 255
    flow = AdversarialOptions("flow").around(inner)
    assert flow == AdversarialOptions("flow-pgd").around(inner)
    single = AdversarialOptions("fgsm-rs", adversarial_step_size=0.5).attack()
    assert single == PGD(steps=1, step_size=0.5, early_stop=False)
    labels = [AdversarialOptions("flow").label, AdversarialOptions("trades").label]
    labels += [AdversarialOptions("free", adversarial_attack="pgd-l2").label]
    assert labels == ["at-flow", "at-trades", "at-free-pgd-l2"]


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"trades_beta": 3.0}, "--trades_beta needs --adversarial"),
        ({"adversarial": "pgd", "trades_beta": 3.0}, "--trades_beta means nothing to .* pgd"),
        ({"adversarial": "trades", "free_replays": 4}, "--free_replays means nothing to .* trades"),
        ({"adversarial": "pgd", "adversarial_attack": "pgd"}, "--adversarial_attack means nothing"),
        ({"adversarial": "free", "adversarial_steps": 3}, "--adversarial_steps means nothing"),
        ({"adversarial": "fgsm-rs", "adversarial_steps": 3}, "--adversarial_steps means nothing"),
        ({"adversarial": "trades", "adversarial_attack": "fab"}, "which fab does not"),
        ({"adversarial": "trades", "adversarial_attack": "stadv-tau"}, "which stadv-tau does not"),
        ({"adversarial": "free", "adversarial_attack": "apgd"}, "not as apgd"),
        ({"adversarial": "fgsm-rs", "adversarial_attack": "stadv"}, "not as stadv"),
        ({"adversarial": "tradse"}, "unknown attack 'tradse': did you mean 'trades'"),
        (
            {"adversarial": "trades", "adversarial_attack": "free"},
            "unknown attack 'free': .*choose from flow, fgsm",
        ),
        ({"adversarial": "trades", "trades_beta": -1.0}, "--trades_beta must be at least 0"),
        ({"adversarial": "free", "free_replays": 0}, "--free_replays must be at least 1"),
    ],
)
def test_flags_that_cannot_be_meant_are_refused(given: dict[str, object], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        AdversarialOptions(**given)  # type: ignore[arg-type]


def test_streams_are_keyed_by_a_draw_from_the_global_generator() -> None:
    x, _ = batch()
    torch.manual_seed(5)
    seed = int(torch.randint(2**62, ()))
    torch.manual_seed(5)
    assert torch.equal(fresh_samples(x).normal(x), Samples(range(6), seed).normal(x))
