"""What every attack of the table owes its caller; a new entry is held to it unasked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from attack_stage import (
    COUNT,
    LARGE,
    ON_CLASSES,
    a_net,
    assert_same_state,
    every_attack,
    fooled,
    quick,
    sizes,
    state_of,
    the_data,
    unsettle,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robustbench_gpm.attacks import ATTACKS, Attack, FlowAttack
from robustbench_gpm.core import Samples, UserError


@pytest.fixture
def net() -> nn.Module:
    return a_net()


@every_attack
@settings(max_examples=4, deadline=None)
@given(share=st.floats(0.0, 1.0))
def test_stays_inside_the_budget_and_the_unit_interval(attack: Attack, share: float) -> None:
    net = a_net()
    x, y = the_data(net)
    budget = share * LARGE[attack.threat.name]
    assert (sizes(attack, net, x[:4], y[:4], budget) <= budget * (1 + 1e-7) + 1e-12).all()
    images = attack(net, x[:4], y[:4], budget=budget)
    assert images.shape == x[:4].shape
    assert images.dtype == x.dtype
    assert images.min() >= 0
    assert images.max() <= 1
    assert not images.requires_grad


@every_attack
def test_a_budget_of_nothing_changes_nothing(attack: Attack, net: nn.Module) -> None:
    x, y = the_data(net)
    torch.testing.assert_close(attack(net, x, y, budget=0.0), x, rtol=0, atol=1e-15)


@every_attack
def test_leaves_the_model_and_its_inputs_as_they_were(attack: Attack, net: nn.Module) -> None:
    x, y = the_data(net)
    unsettle(net)
    before, x_before, y_before = state_of(net), x.clone(), y.clone()
    x.requires_grad_()
    rng, numpy_rng = torch.get_rng_state(), np.random.get_state()[1]
    attack(net, x, y, budget=LARGE[attack.threat.name])
    assert_same_state(before, state_of(net))
    assert torch.equal(x, x_before)
    assert torch.equal(y, y_before)
    assert x.grad is None
    assert torch.equal(rng, torch.get_rng_state())
    assert np.array_equal(numpy_rng, np.random.get_state()[1])


@every_attack
def test_leaves_the_model_as_it_was_when_it_fails(attack: Attack, net: nn.Module) -> None:
    x, y = the_data(net)
    unsettle(net)
    before = state_of(net)

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory, say")

    handle = net[5].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        attack(net, x, y, budget=LARGE[attack.threat.name])
    handle.remove()
    assert_same_state(before, state_of(net))


@every_attack
def test_attacks_the_model_in_evaluation_mode_and_spends_nothing_on_weights(
    attack: Attack, net: nn.Module
) -> None:
    x, y = the_data(net)
    seen = []

    def look(module: nn.Module, *_: object) -> None:
        training = any(part.training for part in module.modules())
        seen.append(training or any(p.requires_grad for p in module.parameters()))

    net.register_forward_hook(look)
    attack(net, x, y, budget=LARGE[attack.threat.name])
    assert seen
    assert not any(seen)


@every_attack
def test_works_where_the_caller_has_switched_gradients_off(attack: Attack, net: nn.Module) -> None:
    x, y = the_data(net)
    budget = LARGE[attack.threat.name]
    expected = attack(net, x[:3], y[:3], budget=budget)
    with torch.no_grad():
        assert torch.equal(attack(net, x[:3], y[:3], budget=budget), expected)


@every_attack
def test_the_batch_and_the_order_do_not_matter(attack: Attack, net: nn.Module) -> None:
    x, y = the_data(net)
    index = torch.arange(100, 100 + COUNT)
    budget = LARGE[attack.threat.name] / 4
    whole = attack(net, x, y, budget=budget, samples=Samples(index, seed=7))
    order = torch.randperm(COUNT, generator=torch.manual_seed(3))
    for chunk in (*order[:7].split(7), *order[7:].split(1)):
        samples = Samples(index[chunk], seed=7)
        part = attack(net, x[chunk], y[chunk], budget=budget, samples=samples)
        torch.testing.assert_close(part, whole[chunk], rtol=0, atol=1e-9)
        assert torch.equal(fooled(net, part, y[chunk]), fooled(net, whole, y)[chunk])


@every_attack
def test_the_seed_alone_decides(
    attack: Attack, net: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    draws = []
    draw = Samples._draw
    monkeypatch.setattr(Samples, "_draw", lambda *given: (draws.append(1), draw(*given))[1])
    x, y = the_data(net)
    large = LARGE[attack.threat.name]
    budget = large if attack.minimum_norm else large / 4  # where it finds something

    def attacked(seed: int) -> Tensor:
        return attack(net, x, y, budget=budget, samples=Samples(range(COUNT), seed))

    first = attacked(1)
    torch.manual_seed(99)
    np.random.seed(99)
    assert torch.equal(attacked(1), first)
    assert torch.equal(attacked(2), first) == (not draws)


@every_attack
def test_fools_more_with_more(attack: Attack, net: nn.Module) -> None:
    x, y = the_data(net)
    large = LARGE[attack.threat.name]
    counts = [
        int(fooled(net, attack(net, x, y, budget=share * large), y).sum())
        for share in (0.0, 0.1, 1.0)
    ]
    assert counts[0] == 0
    assert counts[1] <= counts[2]
    assert counts[2] >= COUNT / 2


@contextmanager
def passes_counted(net: nn.Module) -> Iterator[dict[str, int]]:
    counted = {"forwards": 0, "backwards": 0}

    def add(key: str, number: int) -> None:
        counted[key] += number

    def look(_: nn.Module, __: object, output: Tensor) -> None:
        add("forwards", len(output))
        if output.requires_grad:
            output.register_hook(lambda gradient: add("backwards", len(gradient)))

    handle = net.register_forward_hook(look)
    yield counted
    handle.remove()


@every_attack
@pytest.mark.parametrize("share", [0.05, 1.0])
def test_the_book_holds_every_pass(attack: Attack, net: nn.Module, share: float) -> None:
    x, y = the_data(net)
    samples = Samples(range(COUNT))
    with passes_counted(net) as counted:
        attack(net, x, y, budget=share * LARGE[attack.threat.name], samples=samples)
    assert int(samples.forwards.sum()) == counted["forwards"] > 0
    assert int(samples.backwards.sum()) == counted["backwards"]


class Treacherous(nn.Module):
    """The network with a NaN in the gradient of its first pixel, and only there."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.net(x) + (0 * x[:, :1, 0, 0]).sqrt()
        return output


@every_attack
def test_a_nan_in_the_gradient_does_no_harm(attack: Attack, net: nn.Module) -> None:
    x, y = the_data(net)
    budget = LARGE[attack.threat.name]
    treacherous = Treacherous(net)
    images = attack(treacherous, x, y, budget=budget)
    assert torch.isfinite(images).all()
    assert images.min() >= 0
    assert images.max() <= 1
    assert (sizes(attack, treacherous, x, y, budget) <= budget * (1 + 1e-7)).all()
    assert fooled(net, images, y).sum() >= COUNT / 2


@every_attack
def test_an_empty_batch_is_no_trouble(attack: Attack, net: nn.Module) -> None:
    x, y = the_data(net)
    assert attack(net, x[:0], y[:0], budget=0.1).shape == (0, 2, 8, 8)


@every_attack
def test_wrong_use_is_told_in_a_sentence(attack: Attack, net: nn.Module) -> None:
    x, y = the_data(net)
    for budget in (-0.1, float("nan")):
        with pytest.raises(UserError, match="budget must be at least 0"):
            attack(net, x, y, budget=budget)
    with pytest.raises(UserError, match=r"must lie in \[0,1\]"):
        attack(net, 255 * x, y, budget=0.1)
    with pytest.raises(UserError, match=r"must lie in \[0,1\]"):
        attack(net, x * float("nan"), y, budget=0.1)


@every_attack
def test_hyper_parameters_are_shown_and_checked(attack: Attack) -> None:
    for field in fields(attack):
        value = getattr(attack, field.name)
        assert f"{field.name}={value!r}" in repr(attack)
        if isinstance(value, bool):
            continue
        named = isinstance(value, str) and field.name != "loss"  # whose names the task knows
        wrong: object = "nonsense" if named else -1
        with pytest.raises(UserError, match=f"{type(attack).__name__}: {field.name} must be"):
            replace(attack, **{field.name: wrong})


def test_no_two_entries_are_the_same_attack() -> None:
    assert len({repr(attack) for attack in ATTACKS.values()}) == len(ATTACKS)


@pytest.mark.parametrize("name", [n for n, a in ON_CLASSES.items() if isinstance(a, FlowAttack)])
def test_a_flow_attack_returns_what_its_flow_makes(name: str, net: nn.Module) -> None:
    attack = quick(ATTACKS[name])
    assert isinstance(attack, FlowAttack)
    x, y = the_data(net)
    flow = attack.flow(net, x, y, budget=0.4)
    assert flow.shape == (COUNT, 2, 8, 8)
    torch.testing.assert_close(attack(net, x, y, budget=0.4), attack.render(x, flow))
