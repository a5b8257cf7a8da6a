"""Doubt where it is due and nowhere else: honest networks, and a gallery of broken defences."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from broken_defences import (
    JPEG,
    Bent,
    Detached,
    LoudLogits,
    Noisy,
    Quantised,
    backwards,
    drowned,
    true_at_bytes,
    with_winners,
)
from torch import Tensor, nn

from robustbench_gpm.attacks.pgd import PGD
from robustbench_gpm.checkpoint import load
from robustbench_gpm.core import Samples
from robustbench_gpm.datasets import LoadOptions, Split, load_split
from robustbench_gpm.models import Normalised
from robustbench_gpm.tasks import Classification
from robustbench_gpm.trust import (
    ESCALATION,
    NOTES,
    REMEDIES,
    ClassView,
    Connected,
    Flag,
    half_precision_drift,
    indicators,
    preflight,
)

CHECKPOINTS = Path(__file__).resolve().parent.parent / "checkpoints"
CPU = torch.device("cpu")
BUDGET = 0.2  # at which an undefended network has nothing left


@cache
def data(part: str = "test") -> Split:
    return load_split("digits", part, LoadOptions(None, Path("unused")))  # type: ignore[arg-type]


def baseline() -> nn.Module:
    return load(CHECKPOINTS / "digits_baseline").model


@cache
def trained(budget: float) -> nn.Module:
    """A small network trained on images attacked at a budget; plainly at budget 0."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )
    x, y = data("train").batch(slice(None))
    attack = PGD(steps=4, step_size=0.5, early_stop=False)
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(8):
        for rows in torch.randperm(len(x)).split(64):
            images = attack(net, x[rows], y[rows], budget=budget) if budget else x[rows]
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(images), y[rows]).backward()
            optimiser.step()
    return net.eval()


HONEST: dict[str, Callable[[], nn.Module]] = {
    "baseline": baseline,
    "flow gradient": lambda: load(CHECKPOINTS / "digits_fgr300").model,
    "plain": lambda: trained(0.0),
    "adversarial": lambda: trained(16 / 255),
}
MASKED = {"zero_gradients", "black_box_beats_white_box", "unbounded_attack_fails"}
BROKEN: dict[str, tuple[Callable[[nn.Module], nn.Module], set[str]]] = {
    "loud logits": (LoudLogits, MASKED | {"transfer_beats_white_box"}),
    "detached": (Detached, MASKED | {"loss_does_not_rise"}),
    "quantised": (Quantised, MASKED),
    "jpeg": (JPEG, MASKED),
    "noisy": (Noisy, {"randomised_outputs"}),
    "backwards": (lambda net: Bent(net, backwards), {"loss_does_not_rise"}),
    "true at bytes": (lambda net: Bent(net, true_at_bytes), {"fgsm_beats_pgd"}),
    "drowned": (lambda net: Bent(net, drowned), {"more_steps_still_help"}),
}


def checked(model: nn.Module, split: Split | None = None) -> dict[str, Flag]:
    flags = preflight(model, split or data(), ClassView(), CPU, 250)
    return {flag.name: flag for flag in flags}


def seen(model: nn.Module, budget: float, norm: Any = "linf", count: int = 40) -> dict[str, Flag]:
    x, y = data().limit(count).batch(slice(None))
    flags = indicators(model, x, y, budget=budget, norm=norm)
    return {flag.name: flag for flag in flags}


def robust(model: nn.Module, budget: float, count: int = 60) -> float:
    """The accuracy that plain PGD leaves."""
    x, y = data().limit(count).batch(slice(None))
    probed = Connected(model)
    attacked = PGD()(probed, x, y, budget=budget)
    with torch.no_grad():
        return float((probed(attacked).argmax(1) == y).double().mean())


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_network_passes_every_check(name: str) -> None:
    assert checked(HONEST[name]()) == {}


@pytest.mark.parametrize(
    ("norm", "budget"),
    [("linf", 4 / 255), ("linf", 16 / 255), ("linf", 32 / 255), ("l2", 0.5)],
)
@pytest.mark.parametrize("name", ["plain", "adversarial"])
def test_an_honest_network_raises_no_doubt(name: str, norm: str, budget: float) -> None:
    assert seen(HONEST[name](), budget, norm) == {}


@pytest.mark.parametrize(("norm", "budget"), [("linf", 24 / 255), ("l2", 0.5)])
@pytest.mark.parametrize("name", ["baseline", "flow gradient"])
def test_a_shipped_network_raises_no_doubt(name: str, norm: str, budget: float) -> None:
    assert seen(HONEST[name](), budget, norm, 30) == {}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_defence_looks_robust_and_is_caught(name: str) -> None:
    broken, expected = BROKEN[name]
    model = broken(trained(0.0)).eval()
    assert robust(model, BUDGET) > robust(trained(0.0), BUDGET) + 0.25
    assert set(seen(model, BUDGET)) >= expected


def test_winners_look_robust_and_are_caught() -> None:
    model = with_winners(baseline(), *data("train").batch(slice(None)))
    assert robust(model, 32 / 255) > robust(baseline(), 32 / 255) + 0.25
    assert "black_box_beats_white_box" in seen(model, 32 / 255)


@pytest.mark.parametrize("name", sorted(set(BROKEN) - {"true at bytes", "drowned"}))
def test_a_broken_defence_is_caught_in_l2_at_a_small_budget_too(name: str) -> None:
    assert seen(BROKEN[name][0](trained(0.0)).eval(), 0.25, "l2", 16)


def test_a_flag_goes_into_json_and_every_flag_has_its_escalation() -> None:
    flags = seen(LoudLogits(trained(0.0)), BUDGET, count=16)
    for flag in flags.values():
        assert json.loads(json.dumps(flag.as_dict())) == flag.as_dict()
        assert flag.measured > flag.threshold
        assert flag.meaning.count(". ") <= 1
    assert {"zero_gradients", "randomised_outputs", "classes"} <= set(ESCALATION)
    assert set(ESCALATION) >= {name for _, names in BROKEN.values() for name in names} | NOTES
    assert {remedy for remedies in ESCALATION.values() for remedy in remedies} == set(REMEDIES)
    assert all(ESCALATION[name] for _, names in BROKEN.values() for name in names)


def test_probes_cost_what_is_promised_and_book_it() -> None:
    passes = {"forwards": 0, "backwards": 0}
    net = nn.Sequential(trained(0.0))

    def count(_: nn.Module, __: Any, output: Tensor) -> None:
        passes["forwards"] += len(output)
        if output.requires_grad:
            output.register_hook(
                lambda gradient: passes.update(backwards=passes["backwards"] + len(gradient))
            )

    net.register_forward_hook(count)
    x, y = data().limit(6).batch(slice(None))
    samples = Samples(range(6))
    indicators(net, x, y, budget=2 / 255, samples=samples)
    assert passes == {
        "forwards": int(samples.forwards.sum()),
        "backwards": int(samples.backwards.sum()),
    }
    assert 380 < int(samples.forwards.max()) <= 410
    assert 180 < int(samples.backwards.max()) <= 210


def test_checks_leave_no_trace() -> None:
    model = Noisy(baseline()).train()
    model.network.eval()  # mixed modes
    modes = [module.training for module in model.modules()]
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    assert "randomised_outputs" in checked(model, data().limit(40))
    assert "randomised_outputs" in seen(model, 0.1, count=4)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_signs_do_not_depend_on_the_batch() -> None:
    x, y = data().limit(20).batch(slice(None))
    model = LoudLogits(trained(0.0).double(), 300.0)
    try:
        whole = indicators(model, x.double(), y, budget=0.1)
        parts = indicators(model, x.double(), y, budget=0.1, batch_size=7)
        order = torch.arange(19, -1, -1)
        turned = indicators(
            model, x[order].double(), y[order], budget=0.1, samples=Samples(order.tolist())
        )
    finally:
        trained(0.0).float()
    assert whole == parts == turned
    assert whole


def test_there_is_nothing_to_tell_of_no_images_or_wrong_ones() -> None:
    x, y = data().limit(4).batch(slice(None))
    assert indicators(trained(0.0), x[:0], y[:0], budget=0.1) == []
    assert indicators(trained(0.0), x, (trained(0.0)(x).argmax(1) + 1) % 10, budget=0.1) == []


def test_a_connected_model_gives_the_same_and_a_gradient() -> None:
    x, _ = data().limit(3).batch(slice(None))
    x.requires_grad_()
    net = Detached(trained(0.0)).requires_grad_(False)
    outputs = Connected(net)(x)
    assert torch.equal(outputs, net(x))
    (gradient,) = torch.autograd.grad(outputs.sum(), x)
    assert torch.equal(gradient, torch.zeros_like(x))
    trained(0.0).requires_grad_(True)


class Changed(nn.Module):
    """An honest network whose outputs are changed on the way out."""

    def __init__(self, change: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self.change = trained(0.0), change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(x, self.network(x))


def nan_where_bright(x: Tensor, logits: Tensor) -> Tensor:
    bright = x.flatten(1).mean(1, keepdim=True) > 0.37
    return torch.where(bright, torch.nan, logits)


CHANGES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "softmax_outputs": lambda _, logits: logits.softmax(1),
    "classes": lambda _, logits: torch.cat([logits, logits[:, :5] - 50], 1),
    "batch_dependent": lambda _, logits: logits - logits.mean(0),
    "randomised_outputs": lambda _, logits: logits + 0.1 * torch.randn_like(logits),
    "non_finite_logits": nan_where_bright,
    "half_precision_drift": lambda _, logits: (logits + 3000) - 3000,
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_the_outputs_is_told(name: str) -> None:
    assert set(checked(Changed(CHANGES[name]).eval())) == {name}


def test_normalisation_done_twice_or_never_is_told() -> None:
    mean, std = (0.3053,), (0.3760,)
    honest = baseline()
    assert isinstance(honest, Normalised)
    assert set(checked(Normalised(honest, mean, std))) == {"normalised_twice"}
    assert set(checked(nn.Sequential(Normalised(honest, mean, std)))) == {"normalised_twice"}
    assert set(checked(honest.network)) == {"not_normalised"}
    slightly = Normalised(honest, (0.15,), (1.5,))  # less than ten points, in plain sight
    assert set(checked(slightly)) == {"normalised_twice"}
    assert checked(nn.Sequential(slightly)) == {}
    assert checked(Normalised(honest, (0.0,), (1.0,))) == {}  # that changes nothing


def test_training_mode_is_told_where_it_matters() -> None:
    assert set(checked(baseline().train())) == {"training_mode"}
    assert checked(nn.Sequential(trained(0.0)).train()) == {}
    trained(0.0).eval()


def test_an_unused_range_is_told() -> None:
    dark = replace(data(), images=data().images // 200)
    flat = replace(data(), images=torch.full_like(data().images, 128))
    assert "input_range" in checked(baseline(), dark)
    assert "input_range" in checked(baseline(), flat)


def test_half_precision_drift_is_a_share_of_predictions() -> None:
    def drift(model: nn.Module) -> float:
        return half_precision_drift(model, data(), Classification(), CPU, 100)

    assert drift(baseline()) <= 0.01
    assert 0.1 < drift(Changed(CHANGES["half_precision_drift"])) <= 1
    fails = Changed(lambda _, logits: logits @ torch.eye(10))  # float32 whatever comes in
    assert drift(fails) == 1
