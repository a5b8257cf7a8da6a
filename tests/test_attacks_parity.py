"""The same attacks as torchattacks' and foolbox's, on the same trained network."""

from __future__ import annotations

import eagerpy as ep
import foolbox
import pytest
import torch
import torchattacks
from sklearn.datasets import load_digits
from torch import Tensor, nn

from robustbench_gpm.attacks.fgsm import FGSM
from robustbench_gpm.attacks.flow import FlowPGD
from robustbench_gpm.attacks.pgd import PGD
from robustbench_gpm.attacks.stadv import StAdv
from robustbench_gpm.core import Samples
from robustbench_gpm.deformation import identity_flow, to_pixels, warp
from robustbench_gpm.losses import margin

BUDGETS = {"linf": 0.06, "l2": 0.5}
STEPS, STEP_SIZE = 20, 0.125


@pytest.fixture(scope="module")
def digits() -> tuple[nn.Module, Tensor, Tensor]:
    """A network trained on handwritten digits, and 400 it has not seen; all in float64."""
    data = load_digits()
    x, y = torch.tensor(data.images).float()[:, None] / 16, torch.tensor(data.target)
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(8):
        for batch in torch.randperm(1397).split(64):
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(x[batch]), y[batch]).backward()
            optimiser.step()
    return net.double().eval(), x[1397:].double(), y[1397:]


def fooled(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        verdict: Tensor = net(x).argmax(1) != y
    return verdict


def by_foolbox(
    attack: foolbox.Attack, net: nn.Module, x: Tensor, y: Tensor, budget: float
) -> Tensor:
    model = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
    criterion = foolbox.criteria.Misclassification(ep.astensor(y))
    raw: Tensor = attack.run(model, ep.astensor(x), criterion, epsilon=budget).raw
    return raw.detach()


def theirs(
    library: str, norm: str, random: bool, digits: tuple[nn.Module, Tensor, Tensor]
) -> Tensor:
    net, x, y = digits
    budget = BUDGETS[norm]
    if library == "foolbox":
        kind = foolbox.attacks.LinfPGD if norm == "linf" else foolbox.attacks.L2PGD
        attack = kind(rel_stepsize=STEP_SIZE, steps=STEPS, random_start=random)
        return by_foolbox(attack, net, x, y, budget)
    shared = {"eps": budget, "alpha": STEP_SIZE * budget, "steps": STEPS, "random_start": random}
    if norm == "linf":
        images: Tensor = torchattacks.PGD(net, **shared)(x, y)
    else:
        # Its own 1e-10, added to the length of a gradient, would shorten a confident sample's step.
        images = torchattacks.PGDL2(net, eps_for_division=1e-300, **shared)(x, y)
    return images.detach()


def test_the_network_is_worth_attacking(digits: tuple[nn.Module, Tensor, Tensor]) -> None:
    assert fooled(*digits).double().mean() < 0.12


def test_fgsm_is_theirs(digits: tuple[nn.Module, Tensor, Tensor]) -> None:
    net, x, y = digits
    budget = BUDGETS["linf"]
    ours = FGSM()(net, x, y, budget=budget)
    by_torchattacks = torchattacks.FGSM(net, eps=budget)(x, y)
    fast = foolbox.attacks.LinfFastGradientAttack(random_start=False)
    torch.testing.assert_close(ours, by_torchattacks, rtol=0, atol=1e-6)
    torch.testing.assert_close(ours, by_foolbox(fast, net, x, y, budget), rtol=0, atol=1e-6)
    fast_l2 = foolbox.attacks.L2FastGradientAttack(random_start=False)
    ours_l2 = FGSM(norm="l2")(net, x, y, budget=BUDGETS["l2"])
    theirs_l2 = by_foolbox(fast_l2, net, x, y, BUDGETS["l2"])
    torch.testing.assert_close(ours_l2, theirs_l2, rtol=0, atol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("library", ["torchattacks", "foolbox"])
def test_pgd_from_the_image_is_theirs(
    library: str, norm: str, digits: tuple[nn.Module, Tensor, Tensor]
) -> None:
    net, x, y = digits
    attack = PGD(norm, STEPS, STEP_SIZE, random_start=False, early_stop=False)
    ours = attack(net, x, y, budget=BUDGETS[norm])
    other = theirs(library, norm, False, digits)
    torch.testing.assert_close(ours, other, rtol=0, atol=1e-9)
    assert torch.equal(fooled(net, ours, y), fooled(net, other, y))


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("library", ["torchattacks", "foolbox"])
def test_pgd_from_a_random_point_fools_as_many(
    library: str, norm: str, digits: tuple[nn.Module, Tensor, Tensor]
) -> None:
    net, x, y = digits
    attack = PGD(norm, STEPS, STEP_SIZE)
    ours, others = 0, 0
    for seed in range(3):  # one draw of the random start moves either count by a few
        samples = Samples(range(len(x)), seed)
        images = attack(net, x, y, budget=BUDGETS[norm], samples=samples)
        ours += int(fooled(net, images, y).sum())
        others += int(fooled(net, theirs(library, norm, True, digits), y).sum())
    assert 0.2 * len(x) < ours / 3 < 0.9 * len(x)  # neither everybody nor nobody
    assert ours / 3 >= others / 3 - 1


def plain_adam(net: nn.Module, x: Tensor, y: Tensor, budget: float) -> Tensor:
    """Which samples 100 steps of Adam on the margin fool, the flow clamped to the budget."""
    flow = identity_flow(x).requires_grad_()
    optimiser = torch.optim.Adam([flow], lr=to_pixels(0.01, x.shape[-1]))
    ever = fooled(net, x, y)
    for _ in range(100):
        (flow.grad,) = torch.autograd.grad(-margin(net, warp(x, flow), y).sum(), flow)
        optimiser.step()
        with torch.no_grad():
            flow.clamp_(-budget, budget)
            ever |= fooled(net, warp(x, flow), y)
    return ever


@pytest.mark.parametrize("budget", [0.2, 0.3])
def test_flow_attacks_are_no_softer_than_plain_adam(
    budget: float, digits: tuple[nn.Module, Tensor, Tensor]
) -> None:
    net, x, y = digits
    x, y = x[:150], y[:150]
    counts = {
        name: int(fooled(net, attack(net, x, y, budget=budget), y).sum())
        for name, attack in {
            "rest": FlowPGD(),
            "random": FlowPGD(random_start=True),
            "stadv": StAdv(),
        }.items()
    }
    adam = int(plain_adam(net, x, y, budget).sum())
    assert 0.1 * len(x) < counts["stadv"] < len(x)
    assert counts["stadv"] >= adam
    assert counts["stadv"] >= counts["rest"] >= counts["random"]
