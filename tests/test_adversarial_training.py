"""Adversarial training: the objective's own gradient, taken at the attacked images."""

from __future__ import annotations

import copy

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from robustbench_gpm.attacks.flow import FlowPGD
from robustbench_gpm.attacks.pgd import PGD
from robustbench_gpm.core import UserError
from robustbench_gpm.deformation import to_pixels
from robustbench_gpm.losses import cross_entropy
from robustbench_gpm.objectives import (
    AdversarialOptions,
    AdversarialTraining,
    FlowGradient,
    InputGradient,
    Objective,
    Penalised,
)


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Softplus(), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(4 * 16, 5)).double()


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(6, 2, 6, 6, dtype=torch.double), torch.randint(0, 5, (6,))


def gradients(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("attack", [PGD(random_start=False, early_stop=False), FlowPGD(steps=3)])
@pytest.mark.parametrize("inner", [Penalised(), Penalised((InputGradient(1.0),))])
def test_the_gradient_is_the_inner_one_at_the_attacked_images(
    attack: PGD | FlowPGD, inner: Penalised
) -> None:
    model, (x, y) = network(), batch()
    other = copy.deepcopy(model)
    log = AdversarialTraining(attack, 0.1, inner).backward(model, x, y, cross_entropy)
    attacked = attack(copy.deepcopy(other), x, y, budget=0.1)
    assert not torch.equal(attacked, x)
    expected = inner.backward(other, attacked, y, cross_entropy)
    torch.testing.assert_close(gradients(model), gradients(other))
    torch.testing.assert_close(log, expected)
    for name, value in model.state_dict().items():  # statistics of the attacked images alone
        torch.testing.assert_close(value, other.state_dict()[name])


def test_a_random_start_follows_the_seed() -> None:
    objective = AdversarialTraining(PGD(steps=1), 0.1, Penalised())
    (x, y), losses = batch(), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        model = network().eval()
        torch.manual_seed(seed)
        losses.append(float(objective.backward(model, x, y, cross_entropy)["loss"]))
    assert losses[0] == losses[1] != losses[2]


def test_the_attack_is_the_one_of_the_flags_and_never_stops_early() -> None:
    options = AdversarialOptions("pgd", 0.1, adversarial_steps=2, adversarial_step_size=0.75)
    assert options.attack() == PGD(steps=2, step_size=0.75, early_stop=False)


def test_a_budget_that_is_not_given_is_the_usual_one_of_the_threat() -> None:
    assert AdversarialOptions("pgd").budget == 8 / 255
    assert AdversarialOptions("flow-pgd").budget == pytest.approx(to_pixels(0.01, 32))
    assert AdversarialOptions("flow-pgd", 0.5).budget == 0.5
    with pytest.raises(UserError, match="needs --adversarial_budget: there is no usual one for l0"):
        AdversarialOptions("fmn-l0")
    with pytest.raises(UserError, match="needs --adversarial"):
        AdversarialOptions(adversarial_budget=0.1)


def test_training_against_flows_withstands_flows_with_the_penalty_and_without() -> None:
    """Deformation adversarial training, alone and with the flow gradient, on digits."""
    data = load_digits()
    x, y = torch.tensor(data.images).float()[:, None] / 16, torch.tensor(data.target)
    attack = FlowPGD(steps=3, step_size=0.5, early_stop=False)
    plain, penalised = Penalised(), Penalised((FlowGradient(300.0),))
    objectives: dict[str, Objective] = {
        "baseline": plain,
        "flow": AdversarialTraining(attack, 0.3, plain),
        "both": AdversarialTraining(attack, 0.3, penalised),
    }
    robust = {}
    for name, objective in objectives.items():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 10)
        )
        optimiser = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
        for _ in range(6):
            for rows in torch.randperm(1200).split(100):
                optimiser.zero_grad()
                objective.backward(net, x[rows], y[rows], cross_entropy)
                optimiser.step()
        images = FlowPGD()(net, x[1200:1500], y[1200:1500], budget=0.3)
        robust[name] = float((net(images).argmax(1) == y[1200:1500]).double().mean())
    assert robust["flow"] > robust["baseline"] + 0.05
    assert robust["both"] > robust["baseline"] + 0.05


def test_wrong_flags_are_told_in_a_sentence() -> None:
    with pytest.raises(UserError, match="needs --adversarial"):
        AdversarialOptions(adversarial_steps=3)
    with pytest.raises(UserError, match="unknown attack 'pdg': did you mean 'pgd'"):
        AdversarialOptions("pdg")
    with pytest.raises(UserError, match="the attack 'fgsm' has no steps"):
        AdversarialOptions("fgsm", adversarial_steps=3)
