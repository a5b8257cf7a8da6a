"""Attacks of torchattacks and foolbox by their names, and what is promised of all of them."""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace

import foolbox
import numpy as np
import pytest
import torch
import torchattacks
from attack_stage import assert_same_state, fooled, state_of
from test_attacks_table import passes_counted
from torch import Tensor, nn

from robustbench_gpm.attacks import ATTACKS, Attack
from robustbench_gpm.attacks.by_foolbox import CLASSES, by_foolbox, foreign_model
from robustbench_gpm.attacks.by_torchattacks import by_torchattacks
from robustbench_gpm.attacks.minimum_norm import MinimumNormAttack
from robustbench_gpm.attacks.named import attack_named
from robustbench_gpm.attacks.pgd import PGD
from robustbench_gpm.core import Samples, UserError

BUDGETS = {"linf": 0.05, "l2": 1.0, "l1": 10.0, "l0": 12.0}
REFUSED = {
    *("torchattacks:VANILA", "torchattacks:MultiAttack", "torchattacks:LGV"),
    *("foolbox:Attack", "foolbox:BinarizationRefinementAttack", "foolbox:DatasetAttack"),
    *("foolbox:GenAttack", "foolbox:SpatialAttack", "foolbox:VirtualAdversarialAttack"),
}
if importlib.util.find_spec("numba") is None:
    REFUSED |= {f"foolbox:{n}BrendelBethgeAttack" for n in ("L0", "L1", "L2", "Linfinity")}
EVERY = [
    *(f"torchattacks:{name}" for name in torchattacks.__all__),
    *(f"foolbox:{name}" for name in CLASSES),
]
# What takes long by its defaults, with fewer steps; torchattacks' AutoAttack has no such setting.
FEWER: dict[str, tuple[tuple[str, int], ...]] = {
    "torchattacks:Square": (("n_queries", 40),),
    "torchattacks:EADL1": (("max_iterations", 10),),
    "torchattacks:EADEN": (("max_iterations", 10),),
    "foolbox:BoundaryAttack": (("steps", 40),),
    "foolbox:HopSkipJumpAttack": (("steps", 2),),
    "foolbox:EADAttack": (("steps", 10),),
    "foolbox:L2CarliniWagnerAttack": (("steps", 10),),
    "foolbox:GaussianBlurAttack": (("steps", 20),),
    "foolbox:LinearSearchContrastReductionAttack": (("steps", 20),),
    "foolbox:LinearSearchBlendedUniformNoiseAttack": (("steps", 20), ("directions", 20)),
    "foolbox:SaltAndPepperNoiseAttack": (("steps", 50),),
}
SERVED = [name for name in EVERY if name not in REFUSED]
RUN = [name for name in SERVED if name != "torchattacks:AutoAttack"]
# Perhaps too weak for the network below: one draw of noise, one look at the image, few steps.
WEAK = (
    "Noise",
    "Contrast",
    "Blur",
    "Inversion",
    "GN",
    "SPSA",
    "OnePixel",
    "Pixle",
    "Square",
    "Boundary",
    "HopSkip",
)


def quick(name: str) -> Attack:
    return replace(attack_named(name), options=FEWER.get(name, ()))  # type: ignore[call-arg]


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(100, 10),
    ).double()


def the_data(net: nn.Module) -> tuple[Tensor, Tensor]:
    x = torch.rand(4, 3, 12, 12, dtype=torch.float64, generator=torch.manual_seed(1))
    net.eval()
    y = net(x).argmax(1)
    net.train()
    return x, y


def global_state() -> tuple[object, ...]:
    numpy = np.random.get_state()
    return (
        torch.get_rng_state().tolist(),
        random.getstate(),
        np.asarray(numpy[1]).tolist(),
        numpy[2],
    )


@pytest.mark.parametrize("name", EVERY)
def test_every_class_is_adapted_or_refused_in_a_sentence(name: str) -> None:
    if name in REFUSED:
        with pytest.raises(UserError, match="cannot be used here: it ") as caught:
            attack_named(name)
        assert name in str(caught.value)
        return
    attack = attack_named(name)
    assert attack.threat.name in BUDGETS
    assert attack.batch_dependent  # type: ignore[attr-defined]
    with pytest.raises(FrozenInstanceError):
        attack.name = "other"  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", RUN)
def test_every_class_keeps_what_is_promised_of_attacks(name: str, net: nn.Module) -> None:
    x, y = the_data(net)
    attack, budget = quick(name), BUDGETS[attack_named(name).threat.name]
    net[0].weight.grad = torch.ones_like(net[0].weight)
    before, states, x_before = state_of(net), global_state(), x.clone()
    samples = Samples(range(4))
    with passes_counted(net) as counted:
        images = attack(net, x, y, budget=budget, samples=samples)
    assert_same_state(before, state_of(net))
    assert global_state() == states
    assert torch.equal(x, x_before)
    assert images.dtype == x.dtype
    assert not images.requires_grad
    assert images.min() >= 0
    assert images.max() <= 1
    assert (attack.threat.size(images - x) <= budget * (1 + 1e-9)).all()
    assert int(samples.forwards.sum()) == counted["forwards"] > 0
    assert int(samples.backwards.sum()) == counted["backwards"]
    if not any(word in name for word in WEAK):
        assert fooled(net, images, y).sum() >= 2


@pytest.mark.parametrize("name", ["torchattacks:PGD", "torchattacks:CW", "foolbox:LinfPGD"])
def test_the_seed_and_the_first_sample_decide(name: str, net: nn.Module) -> None:
    x, y = the_data(net)
    attack = attack_named(name)

    def images(first: int, seed: int) -> Tensor:
        torch.manual_seed(first + seed)
        np.random.seed(first + seed)
        samples = Samples(range(first, first + 4), seed)
        return attack(net, x, y, budget=0.01, samples=samples)

    assert torch.equal(images(0, 1), images(0, 1))
    if "PGD" in name:
        torch.rand(3)
        assert not torch.equal(images(0, 1), images(0, 2))
        assert not torch.equal(images(0, 1), images(4, 1))


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("PGD", lambda net, eps: torchattacks.PGD(net, eps=eps, alpha=eps / 4, random_start=False)),
        ("BIM", lambda net, eps: torchattacks.BIM(net, eps=eps, alpha=eps / 4)),
        ("FFGSM", None),
    ],
)
def test_torchattacks_is_given_its_budget_and_a_step_in_proportion(
    name: str, make: Callable[[nn.Module, float], Callable[[Tensor, Tensor], Tensor]] | None
) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 10)).eval()
    x = torch.rand(4, 3, 4, 4)
    y = net(x).argmax(1)
    options = (("random_start", False),) if name == "PGD" else ()
    for budget in (0.01, 0.1):
        images = by_torchattacks(name, options=options)(net, x, y, budget=budget)
        reached = (images - x).flatten(1).abs().amax(1)
        torch.testing.assert_close(reached, torch.full((4,), budget))
        if make is not None:
            torch.testing.assert_close(images, make(net, budget)(x, y))


def test_foolbox_is_given_its_budget(net: nn.Module) -> None:
    x, y = the_data(net)
    for budget in (0.01, 0.03):
        ours = PGD("linf", steps=1, step_size=1.0, random_start=False)(net, x, y, budget=budget)
        theirs = attack_named("foolbox:FGSM")(net, x, y, budget=budget)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["BoundaryAttack", "HopSkipJumpAttack"])
def test_decision_based_attacks_come_nearer_without_a_gradient(name: str, net: nn.Module) -> None:
    x, y = the_data(net)
    hasty = by_foolbox(name, options=(("steps", 1),))
    thorough = by_foolbox(name, options=(("steps", 200 if name == "BoundaryAttack" else 4),))
    assert isinstance(hasty, MinimumNormAttack)
    assert isinstance(thorough, MinimumNormAttack)
    samples = Samples(range(4))
    near = thorough.nearest(net, x, y, samples=samples)
    far = hasty.nearest(net, x, y)
    done = fooled(net, near, y)
    assert done.sum() >= 2
    assert torch.equal(near[~done], x[~done])
    size = thorough.threat.size
    assert size(near - x)[done].mean() < 0.9 * size(far - x)[done].mean()
    assert int(samples.backwards.sum()) == 0


def test_a_sample_without_a_start_does_not_spoil_the_others() -> None:
    class Stubborn(nn.Module):
        """Gives class 0 to bright images whatever is done to them, and asks for class 1 else."""

        def forward(self, x: Tensor) -> Tensor:
            value = (x.mean((1, 2, 3)) - 0.9)[:, None]
            return torch.cat((value, 0 * value), dim=1)

    x = torch.cat((torch.full((1, 1, 6, 6), 0.95), torch.full((1, 1, 6, 6), 0.1)))
    y = torch.tensor([0, 1])
    attack = by_foolbox("BoundaryAttack", options=(("steps", 20),))
    images = attack(Stubborn(), x, y, budget=100.0)
    assert fooled(Stubborn(), images, y).tolist() == [True, False]
    assert torch.equal(images[1], x[1])


def test_a_model_of_another_framework_is_attacked_without_gradients() -> None:
    weight = np.random.default_rng(0).normal(size=(5 * 5 * 2, 3)).astype(np.float32)

    def forward(images: np.ndarray) -> np.ndarray:
        assert images.shape[1:] == (5, 5, 2)  # channels last, in [0,255]
        flat: np.ndarray = (images.reshape(len(images), -1) / 255 - 0.5) @ weight
        return flat

    theirs = foolbox.NumPyModel(forward, bounds=(0, 255), data_format="channels_last")
    model = foreign_model(theirs)
    x = torch.rand(6, 2, 5, 5, dtype=torch.float64)
    expected = (x.permute(0, 2, 3, 1).flatten(1) - 0.5) @ torch.from_numpy(weight).double()
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)
    y = expected.argmax(1)
    for name in ("BoundaryAttack", "HopSkipJumpAttack"):
        attack = by_foolbox(name, options=(("steps", 3),))
        assert fooled(model, attack(model, x, y, budget=50.0), y).sum() >= 4
    with pytest.raises(UserError, match="gives no gradients"):
        attack_named("pgd")(model, x, y, budget=0.1)


def test_a_torch_model_inside_foolbox_is_still_a_model() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval()
    x = torch.rand(2, 3, 2, 2)
    model = foreign_model(foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu"))
    torch.testing.assert_close(model(x), net(x).detach())


def test_samples_fooled_from_the_start_and_empty_batches_cost_one_look(net: nn.Module) -> None:
    x, y = the_data(net)
    y[1] = (y[1] + 1) % 10
    for name in ("torchattacks:PGD", "foolbox:L2DeepFoolAttack"):
        samples = Samples(range(4))
        images = attack_named(name)(net, x, y, budget=0.05, samples=samples)
        assert torch.equal(images[1], x[1])
        assert samples.forwards[1] <= 2
        assert samples.backwards[1] == 0
        assert samples.backwards.sum() > 0
        assert attack_named(name)(net, x[:0], y[:0], budget=0.05).shape == x[:0].shape
        assert torch.equal(attack_named(name)(net, x, y, budget=0.0), x)


def test_a_norm_may_be_chosen_where_there_are_several() -> None:
    assert attack_named("torchattacks:APGD").threat.name == "linf"
    assert attack_named("torchattacks:APGD-l2").threat.name == "l2"
    assert attack_named("foolbox:HopSkipJumpAttack-linf").threat.name == "linf"
    with pytest.raises(UserError, match="torchattacks:PGD: norm must be one of linf, not 'l2'"):
        attack_named("torchattacks:PGD-l2")


def test_names_of_the_table_are_its_entries() -> None:
    assert all(attack_named(name) is attack for name, attack in ATTACKS.items())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pdg", "did you mean 'pgd'"),
        ("torchattacks:PGDL3", "did you mean 'torchattacks:PGDL2'"),
        ("torchattacks:pgd", "did you mean 'torchattacks:PGD'"),
        ("foolbox:L2DeepfoolAttack", "'foolbox:L2DeepFoolAttack'"),
        ("foolbox:", "foolbox has no attack ''"),
        ("cleverhans:PGD", "torchattacks or foolbox"),
    ],
)
def test_an_unknown_name_is_answered_with_what_comes_close(name: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        attack_named(name)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_a_library_cannot_do_is_told_in_a_sentence() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 2)).eval()
    x = torch.rand(2, 3, 4, 4)
    y = net(x).argmax(1)
    with pytest.raises(UserError, match="torchattacks:APGDT fails on this model or these images"):
        attack_named("torchattacks:APGDT")(net, x, y, budget=0.1)
    with pytest.raises(UserError, match="torchattacks:PGD cannot be made with these options"):
        by_torchattacks("PGD", options=(("stepps", 3),))(net, x, y, budget=0.1)


def test_the_models_own_errors_are_not_hidden(net: nn.Module) -> None:
    x, y = the_data(net)

    def fail(module: nn.Module, given: tuple[Tensor, ...], _: Tensor) -> None:
        if given[0].requires_grad:
            raise RuntimeError("out of memory, say")

    before, states = state_of(net), global_state()
    handle = net.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        attack_named("torchattacks:PGD")(net, x, y, budget=0.1)
    handle.remove()
    assert_same_state(before, state_of(net))
    assert global_state() == states
