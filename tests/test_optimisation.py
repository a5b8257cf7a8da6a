"""Learning rates over time, the two optimizers, clipping and averaged weights."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from robustbench_gpm.core import UserError
from robustbench_gpm.optimisation import Optimisation, Stepper


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)).double()


def train(stepper: Stepper, steps: int, scale: float = 1.0) -> list[dict[str, Tensor]]:
    """Steps along a fixed stream of gradients; the state after each."""
    stream = torch.Generator().manual_seed(1)
    states = []
    for step in range(steps):
        stepper.begin(step / steps)
        for p in stepper.model.parameters():
            p.grad = scale * torch.randn(p.shape, dtype=p.dtype, generator=stream)
        stepper.step()
        states.append(copy.deepcopy(stepper.model.state_dict()))
    return states


@pytest.mark.parametrize(
    ("schedule", "done", "share"),
    [
        ("cosine", 2, 1.0),
        ("cosine", 6, 0.5),
        ("cosine", 4, 0.5 * (1 + math.cos(math.pi / 4))),
        ("cosine", 10, 0.0),
        ("linear", 2, 1.0),
        ("linear", 4, 0.75),
        ("multistep", 4.9, 1.0),
        ("multistep", 5, 0.1),
        ("multistep", 8, 0.01),
    ],
)
def test_after_the_warm_up_the_rate_falls_as_asked(
    schedule: str, done: float, share: float
) -> None:
    plan = Optimisation(
        epochs=10,
        lr=0.4,
        schedule=schedule,  # type: ignore[arg-type]
        milestones=(5, 8),
        warmup_epochs=2,
    )
    assert plan.rate(done) == pytest.approx(0.4 * share, abs=1e-12)
    assert plan.rate(1) == pytest.approx(0.2)
    assert 0 < plan.rate(0) < 0.001


def test_without_warm_up_the_rate_begins_at_its_height() -> None:
    assert Optimisation(lr=0.3).rate(0) == 0.3


def test_nesterov_and_momentum_are_torchs() -> None:
    for nesterov in (False, True):
        ours, theirs = small(), small()
        stepper = Stepper(ours, Optimisation(epochs=3, lr=0.1, nesterov=nesterov))
        optimizer = torch.optim.SGD(
            theirs.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=nesterov
        )
        stream = torch.Generator().manual_seed(1)
        for step in range(3):
            for group in optimizer.param_groups:
                group["lr"] = stepper.optimisation.rate(step / 3)
            for p in theirs.parameters():
                p.grad = torch.randn(p.shape, dtype=p.dtype, generator=stream)
            optimizer.step()
        train(stepper, 3)
        assert all(
            torch.equal(p, q) for p, q in zip(ours.parameters(), theirs.parameters(), strict=True)
        )


def test_adamw_decays_matrices_alone() -> None:
    model = small()
    before = copy.deepcopy(model.state_dict())
    stepper = Stepper(model, Optimisation(optimizer="adamw", lr=0.1, weight_decay=0.5))
    stepper.begin(0)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    stepper.step()
    after = model.state_dict()
    for name, p in model.named_parameters():
        share = 1 - 0.1 * 0.5 if p.dim() > 1 else 1.0
        torch.testing.assert_close(after[name], share * before[name])


def test_long_gradients_are_shortened_and_short_ones_left() -> None:
    for scale, shortened in ((100.0, True), (1e-3, False)):
        model = small()
        before = [p.detach().clone() for p in model.parameters()]
        plan = Optimisation(lr=1.0, momentum=0.0, weight_decay=0.0, clip_norm=0.25)
        train(Stepper(model, plan), 1, scale)
        moved = torch.cat(
            [(p.detach() - b).flatten() for p, b in zip(model.parameters(), before, strict=True)]
        )
        if shortened:
            assert float(moved.norm()) == pytest.approx(0.25, rel=1e-4)
        else:
            assert 0 < float(moved.norm()) < 0.02


def test_the_average_is_exponential_and_is_what_is_kept() -> None:
    stepper = Stepper(small(), Optimisation(lr=0.1, ema=0.75))
    states = train(stepper, 4)
    expected = states[0]["0.weight"]
    for state in states[1:]:
        expected = 0.75 * expected + 0.25 * state["0.weight"]
    torch.testing.assert_close(stepper.kept.state_dict()["0.weight"], expected)
    assert stepper.kept is not stepper.model
    assert list(stepper.kept.state_dict()) == list(stepper.model.state_dict())


def test_statistics_of_batch_norms_are_averaged_too() -> None:
    stepper = Stepper(small(), Optimisation(lr=1e-9, ema=0.5))
    for value in (1.0, 3.0):
        stepper.model[1].running_mean.fill_(value)  # type: ignore[index, union-attr, operator]
        train(stepper, 1)
    assert stepper.kept.state_dict()["1.running_mean"].tolist() == [2.0, 2.0, 2.0]


def test_a_restored_stepper_goes_on_alike() -> None:
    plan = Optimisation(lr=0.1, ema=0.9, nesterov=True)
    whole = Stepper(small(), plan)
    train(whole, 2)
    state = copy.deepcopy(whole.state())
    train(whole, 3)
    resumed = Stepper(small(), plan)
    resumed.restore(state)
    train(resumed, 3)
    for one, other in ((whole.model, resumed.model), (whole.kept, resumed.kept)):
        for key, value in one.state_dict().items():
            assert torch.equal(value, other.state_dict()[key]), key


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"epochs": 3, "warmup_epochs": 3}, "warm up for fewer"),
        ({"nesterov": True, "optimizer": "adamw"}, "--nesterov is for"),
        ({"nesterov": True, "momentum": 0.0}, "--nesterov is for"),
        ({"ema": 1.0}, "--ema must be at most"),
        ({"clip_norm": 0.0}, "--clip_norm must be above 0"),
    ],
)
def test_what_cannot_be_meant_is_told(flags: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Optimisation(**flags)  # type: ignore[arg-type]
