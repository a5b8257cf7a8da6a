"""TRADES against its definition written out plainly."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torchattacks
from adversarial_stage import (
    FLOW,
    INTENSITY,
    Halves,
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
from attack_stage import quick
from torch import Tensor, nn
from torch.nn.functional import cross_entropy as mean_cross_entropy

from robustbench_gpm.attacks import ATTACKS, Attack, raises_any_loss
from robustbench_gpm.attacks.flow import FlowPGD
from robustbench_gpm.core import UserError
from robustbench_gpm.deformation import max_displacement, warp
from robustbench_gpm.losses import cross_entropy
from robustbench_gpm.objectives import (
    InputGradient,
    Objective,
    Penalised,
)
from robustbench_gpm.objectives.attacked import fresh_samples
from robustbench_gpm.objectives.awp import WeightPerturbed
from robustbench_gpm.trainer import MixedPrecision


@pytest.mark.parametrize("attack", [INTENSITY, FLOW], ids=["pgd", "flow-pgd"])
def test_trades_is_its_formula_over_two_passes(attack: Attack) -> None:
    model, (x, y) = without_draws(), batch()
    objective, plain = trades(attack), copy.deepcopy(model)
    other = attacked(objective, model, x, y)
    log = run(objective, model, x, y)

    def formula(net: nn.Module) -> Tensor:
        logits, moved = net(x), net(other)
        divergence = nn.functional.kl_div(
            moved.log_softmax(1), logits.softmax(1), reduction="batchmean"
        )
        return mean_cross_entropy(logits, y) + 6 * divergence

    torch.testing.assert_close(gradients(model), slope(plain, formula))
    same_state(model, plain)  # statistics of two passes, one over either
    torch.testing.assert_close(log["loss"], formula(plain).detach())
    torch.testing.assert_close(log["kl"], kl(plain, x, other).mean().detach())


def test_penalties_beside_trades_are_of_the_first_term_at_the_clean_images() -> None:
    model, (x, y) = without_draws(), batch()
    objective = trades(inner=Penalised((InputGradient(1.5, "l2"),)))
    plain, other = copy.deepcopy(model), attacked(objective, model, x, y)
    log = run(objective, model, x, y)

    def formula(net: nn.Module) -> Tensor:
        at = x.clone().requires_grad_()
        losses = mean_cross_entropy(net(at), y, reduction="none")
        (slopes,) = torch.autograd.grad(losses.sum(), at, create_graph=True)
        penalty = slopes.flatten(1).norm(dim=1).mean()
        return losses.mean() + 1.5 * 4 / 255 * penalty + 6 * kl(net, x, other).mean()

    torch.testing.assert_close(gradients(model), slope(plain, formula))
    torch.testing.assert_close(log["igr"], InputGradient(1.5, "l2")(*_slopes(plain, x, y)).mean())
    unpenalised = without_draws()
    run(trades(), unpenalised, x, y)
    same_state(model, unpenalised)  # statistics are again of one pass over either


def _slopes(net: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    at = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(mean_cross_entropy(net(at), y, reduction="sum"), at)
    return found, x


def test_both_terms_see_one_dropped_network_where_their_pass_is_made_twice() -> None:
    """With a penalty or without, the divergence is the same."""
    x, y = batch()
    penalised = trades(inner=Penalised((InputGradient(1.5),)))
    logs = [run(objective, network(), x, y) for objective in (trades(), penalised)]
    torch.testing.assert_close(logs[0]["kl"], logs[1]["kl"])


def test_the_attacked_images_are_those_of_torchattacks_tpgd(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, (x, y) = network().eval(), batch()
    attack = replace(INTENSITY, steps=5, step_size=0.3)
    found = attacked(trades(attack), model, x, y)
    torch.manual_seed(3)
    noise = fresh_samples(x).normal(x)
    monkeypatch.setattr(torch, "randn_like", lambda _: noise)
    expected = torchattacks.TPGD(model, eps=0.1, alpha=0.03, steps=5)(x, y)
    torch.testing.assert_close(found, expected.double(), rtol=0, atol=1e-6)
    assert float((found - x).abs().amax()) == pytest.approx(0.1)


def test_of_two_classes_and_a_linear_model_a_corner_of_the_ball_is_furthest() -> None:
    """KL grows with |w . (x' - x)| either way, so x' is x + 0.1 sign(w) or x - 0.1 sign(w)."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(8, 2)).double()
    x = 0.2 + 0.6 * torch.rand(16, 2, 2, 2, dtype=torch.double)
    moves = (attacked(trades(), model, x, torch.zeros(16, dtype=torch.long)) - x).flatten(1)
    linear = model[1]
    assert isinstance(linear, nn.Linear)
    corner = 0.1 * (linear.weight[1] - linear.weight[0]).sign()
    sides = (moves @ corner).sign()
    torch.testing.assert_close(moves, (sides[:, None] * corner).detach())
    assert set(sides.tolist()) == {-1.0, 1.0}  # the noise of the start decides


@pytest.mark.parametrize(
    "name", ["fgsm", "fgsm-l2", "apgd-l1", "square", "flow-pgd", "stadv", "affine"]
)
def test_any_attack_that_raises_a_loss_can_look_for_the_divergence(name: str) -> None:
    """Though at the image itself there is no slope to begin with."""
    model, (x, y) = without_draws().eval(), batch()
    attack = quick(ATTACKS[name])
    assert raises_any_loss(attack)
    budget = 0.5 if attack.threat.name == "flow" else 0.05
    objective = replace(trades(), attack=attack, budget=budget)
    other = attacked(objective, model, x, y)
    assert float(kl(model, x, other).detach().mean()) > 1e-6
    if attack.threat.name != "flow":
        assert bool((attack.threat.size(other - x) <= budget + 1e-9).all())


def test_a_flow_found_near_the_image_is_one_of_the_image() -> None:
    model, (x, y) = without_draws().eval(), batch()
    objective = trades(FlowPGD(steps=1, step_size=1.0))
    found = attacked(objective, model, x, y)
    torch.manual_seed(3)
    noise = fresh_samples(x).normal(x)
    flow = torch.zeros(6, 2, 6, 6, dtype=torch.double).requires_grad_()
    near = (x + 0.001 * noise).clamp(0, 1)
    p, q = model(x).log_softmax(1), model(warp(near, flow)).log_softmax(1)
    (g,) = torch.autograd.grad((p.exp() * (p - q)).sum(), flow)
    torch.testing.assert_close(found, warp(x, 0.1 * g.sign()).clamp(0, 1))
    assert float(max_displacement(g).amin()) > 0


def test_without_beta_trades_is_the_inner_objective() -> None:
    x, y = batch()
    one, other = network(), network()
    assert run(trades(beta=0.0), one, x, y) == run(Penalised(), other, x, y)
    assert torch.equal(gradients(one), gradients(other))
    same_state(one, other)


@pytest.mark.parametrize("around", [Halves, lambda inner: WeightPerturbed(0.0, Halves(inner))])
def test_each_image_keeps_its_own_attacked_one_when_the_batch_is_taken_apart(
    around: Callable[[Objective], Objective],
) -> None:
    model, (x, y) = without_draws().eval(), batch()
    plain, whole = copy.deepcopy(model), trades()
    whole_log = run(whole, plain, x, y)
    log = run(trades(inner=around(Penalised())), model, x, y)
    torch.testing.assert_close(gradients(model) / 2, gradients(plain))
    torch.testing.assert_close(log["kl"], whole_log["kl"])


def test_all_passes_of_trades_have_the_precision_of_training() -> None:
    seen: list[torch.dtype] = []
    model, (x, y) = without_draws().float(), batch()
    model.register_forward_hook(lambda *a: seen.append(a[2].dtype))
    log = trades().backward(model, x.float(), y, MixedPrecision(cross_entropy, "cpu"))
    assert seen == [torch.bfloat16] * 6  # the clean image's, three steps', and both terms'
    assert log["loss"].dtype == log["kl"].dtype == torch.float32


def test_trades_is_for_logits_alone() -> None:
    segmenting = nn.Conv2d(2, 5, 1).double()
    labels = torch.zeros(6, 6, 6, dtype=torch.long)
    with pytest.raises(UserError, match="TRADES compares probabilities of classes"):
        run(trades(), segmenting, batch()[0], labels)
