"""Ways to the penalties' gradient against the exact one; weights that rise."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from robustbench_gpm.core import UserError
from robustbench_gpm.losses import cross_entropy
from robustbench_gpm.objectives import (
    GPM,
    FlowGradient,
    InputGradient,
    Objective,
    Penalised,
    Penalty,
)
from robustbench_gpm.objectives.modes import PenaltyMode
from robustbench_gpm.objectives.parameter_gradient import GNP

CLIPPED = GPM(100.0, gpm_clip_ratio=(0.2, 0.8))
EVERY = [
    (FlowGradient(3000.0, 0.0),),
    (InputGradient(1.5),),
    (InputGradient(1.5, "l2"),),
    (InputGradient(300.0, "l2sq"),),
    (GPM(100.0, 0.7),),
    (FlowGradient(3000.0, 0.0), InputGradient(1.5), GPM(100.0, 0.7)),
]


def convolutional() -> nn.Module:
    layers = (nn.Conv2d(2, 4, 3, padding=1), nn.Softplus(), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(4 * 36, 5)).double()


def normalised() -> nn.Module:
    layers = (nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.SiLU(), nn.Conv2d(4, 4, 3))
    return nn.Sequential(
        *layers, nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(16, 5)
    ).double()


def dropping() -> nn.Module:
    layers = (nn.Flatten(), nn.Linear(72, 16), nn.GELU(), nn.Dropout(0.5))
    return nn.Sequential(*layers, nn.LayerNorm(16), nn.Linear(16, 5)).double()


NETWORKS = [convolutional, normalised, dropping]


def batch(size: int = 8) -> tuple[Tensor, Tensor]:
    return torch.rand(size, 2, 6, 6, dtype=torch.double), torch.randint(0, 5, (size,))


def by_steps(step: float) -> PenaltyMode:
    return PenaltyMode("finite_difference", difference_step=step)


def gradient(objective: Objective, model: nn.Module, x: Tensor, y: Tensor, seed: int = 0) -> Tensor:
    """The objective's gradient; `model` is left as it was."""
    model = copy.deepcopy(model)
    torch.manual_seed(seed)
    objective.backward(model, x, y, cross_entropy)
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def error(found: Tensor, exact: Tensor, plain: Tensor) -> float:
    """Of the penalties' part of the gradient, relative."""
    return float((found - exact).norm() / (exact - plain).norm())


@pytest.mark.parametrize("make", NETWORKS)
@pytest.mark.parametrize("penalties", EVERY, ids=repr)
def test_differences_approach_the_exact_gradient_as_the_step_falls(
    make: Any, penalties: tuple[Penalty, ...]
) -> None:
    """In training mode: dropout has one mask, and batch statistics are differentiated too."""
    model, (x, y) = make(), batch()
    plain = gradient(Penalised(), model, x, y)
    exact = gradient(Penalised(penalties), model, x, y)
    errors = [
        error(gradient(Penalised(penalties, by_steps(step)), model, x, y), exact, plain)
        for step in (1e-2, 1e-3, 1e-4)
    ]
    assert errors[0] < 0.3
    assert errors[2] < 5e-3
    assert errors[1] / errors[2] == pytest.approx(10, rel=0.3)  # of first order


@pytest.mark.filterwarnings("ignore:Full backward hook")
def test_differences_cost_two_passes_each_way() -> None:
    class Counted(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner, self.passes = inner, {"forward": 0, "backward": 0, "weights": 0}
            inner[0].register_forward_hook(lambda *_: self.count("forward"))
            inner[0].register_full_backward_hook(lambda *_: self.count("backward"))

        def count(self, way: str) -> None:
            self.passes[way] += 1

        def forward(self, x: Tensor) -> Tensor:
            weight = self.inner[3].weight
            if not hasattr(self, "hooked"):
                self.hooked = weight.register_hook(lambda _: self.count("weights"))
            found: Tensor = self.inner(x)
            return found

    model, (x, y) = Counted(convolutional()), batch()
    every = Penalised(EVERY[-1], by_steps(0.01))
    every.backward(model, x, y, cross_entropy)
    assert model.passes == {"forward": 2, "backward": 2, "weights": 2}
    Penalised((*EVERY[1], CLIPPED), by_steps(0.01)).backward(model, x, y, cross_entropy)
    assert model.passes == {"forward": 5, "backward": 5, "weights": 5}


@pytest.mark.parametrize("penalties", EVERY, ids=repr)
def test_differences_of_a_split_batch_are_those_of_the_whole(
    penalties: tuple[Penalty, ...],
) -> None:
    """To rounding where every sample's slope is as large, otherwise as far as the step matters."""
    model, (x, y) = convolutional(), batch()
    plain = gradient(Penalised(), model, x, y)
    exact = gradient(Penalised(penalties), model, x, y)
    apart = []
    for step in (1e-2, 1e-3, 1e-4):
        objective = Penalised(penalties, by_steps(step))
        halves = [gradient(objective, model, x[i], y[i]) for i in (slice(4), slice(4, 8))]
        apart.append(error(sum(halves) / 2, gradient(objective, model, x, y), plain))
    assert apart[0] < 0.1
    assert apart[2] < 1e-3
    even = all(p.tag == "gpm" or getattr(p, "igr_norm", "") == "l1" for p in penalties)
    assert not even or max(apart) < 1e-9
    assert exact.isfinite().all()


@pytest.mark.parametrize("make", NETWORKS)
def test_every_mode_logs_the_same_and_leaves_the_same_behind(make: Any) -> None:
    left = []
    for mode in (PenaltyMode(), by_steps(0.01), PenaltyMode("lazy", lazy_steps=1)):
        torch.manual_seed(0)
        model, (x, y) = make(), batch()
        objective = Penalised((FlowGradient(300.0), GPM(100.0)), mode, batches=1).at(3.0)
        log = objective.backward(model, x, y, cross_entropy)
        left.append((log, model.state_dict(), torch.get_rng_state()))
    torch.testing.assert_close(left[1][:2], left[0][:2])
    assert left[2][0] == left[0][0]
    assert all(torch.equal(state, left[0][2]) for _, _, state in left)


class Together(nn.Module):
    """Three weights that autograd has one gradient for, and leaves some of them views of it."""

    def __init__(self) -> None:
        super().__init__()
        for name, shape in (("one", (72, 5)), ("two", (72, 5)), ("bent", (360,))):
            self.register_parameter(name, nn.Parameter(0.1 * torch.randn(shape).double()))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x.flatten(1) @ (self.one + self.two + self.bent.view(72, 5)))


@pytest.mark.parametrize("mode", [PenaltyMode(), by_steps(0.01)], ids=lambda mode: mode.label)
def test_gradients_that_autograd_shares_are_each_weights_own(mode: PenaltyMode) -> None:
    model, (x, y) = Together(), batch()
    alone = nn.Sequential(nn.Flatten(), nn.Linear(72, 5, bias=False), nn.Tanh()).double()
    with torch.no_grad():
        alone[1].weight.copy_((model.one + model.two + model.bent.view(72, 5)).T)
    objective = Penalised((*EVERY[1], GPM(100.0)), mode)
    around = GNP(0.8, 0.1 * 3**0.5, objective)  # each of the three weights is moved by 0.1
    for made, single in ((objective, objective), (around, GNP(0.8, 0.3, objective))):
        expected = gradient(single, alone, x, y).view(5, 72).T
        model.zero_grad()
        for _ in range(2):
            made.backward(model, x, y, cross_entropy)
        for p in model.parameters():
            torch.testing.assert_close(p.grad.view(72, 5), 2 * expected)


class OnceOnly(torch.autograd.Function):
    """The square; without a second derivative, like the fast kernels of some layers."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * gradient


class Squares(nn.Module):
    once: ClassVar[bool] = True

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = OnceOnly.apply(x) if self.once else x.square()
        return found


def test_a_layer_without_a_second_derivative_in_torch_is_told() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(72, 6), nn.Hardsigmoid(), nn.Linear(6, 5))
    with pytest.raises(UserError, match="no second derivative"):
        gradient(Penalised(EVERY[1]), model.double(), *batch())


def test_differences_ask_no_layer_for_a_second_derivative(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(72, 6), Squares(), nn.Linear(6, 5)).double()
    x, y = batch()
    with pytest.raises(UserError, match="no second derivative"):
        gradient(Penalised(EVERY[1]), model, x, y)
    found = gradient(Penalised(EVERY[1], by_steps(1e-5)), model, x, y)
    monkeypatch.setattr(Squares, "once", False)
    torch.testing.assert_close(
        found, gradient(Penalised(EVERY[1]), model, x, y), rtol=1e-3, atol=1e-5
    )


def test_differences_are_the_plain_gradient_where_the_penalty_is_flat() -> None:
    model, (x, y) = convolutional(), batch()
    grey = torch.full_like(x, 0.5)  # a warp changes nothing
    objective = Penalised((FlowGradient(3000.0, 0.0),), by_steps(0.01))
    found = gradient(objective, model, grey, y)
    torch.testing.assert_close(found, gradient(Penalised(), model, grey, y))


def test_lazy_is_exact_in_the_mean_and_plain_between() -> None:
    model, (x, y) = convolutional(), batch()
    plain, exact = (gradient(Penalised(p), model, x, y) for p in ((), EVERY[-1]))
    lazy = Penalised(EVERY[-1], PenaltyMode("lazy", lazy_steps=3), batches=7)
    found = [gradient(lazy.at(step / 7), model, x, y) for step in range(12)]
    for first in range(9):
        torch.testing.assert_close(sum(found[first : first + 3]) / 3, exact)
    taken = [step for step in range(12) if not torch.equal(found[step], plain)]
    assert taken == [0, 3, 6, 9]
    assert [bool(lazy.at(e + b / 7).weighted()) for e in range(50) for b in range(7)] == [
        step % 3 == 0 for step in range(350)
    ]


def test_lazy_without_a_count_of_steps_is_refused() -> None:
    for objective in (
        Penalised(EVERY[1], PenaltyMode("lazy"), batches=7),
        Penalised(EVERY[1], PenaltyMode("lazy")).at(1.0),
    ):
        with pytest.raises(ValueError, match=r"objective\.at\(epoch\)"):
            objective.weighted()
    assert Penalised((), PenaltyMode("lazy")).weighted() == []


def test_modes_have_names_and_ranges() -> None:
    modes = (PenaltyMode(), PenaltyMode("finite_difference"), PenaltyMode("lazy", 8))
    assert [mode.label for mode in modes] == ["", "fd", "lazy8"]
    with pytest.raises(UserError, match="--lazy_steps must be at least 1, not 0"):
        PenaltyMode("lazy", 0)
    with pytest.raises(UserError, match="--difference_step must be above 0, not 0"):
        by_steps(0.0)


@pytest.mark.parametrize(
    ("penalty", "epoch", "share"),
    [
        (InputGradient(1.5, igr_ramp=5.0), 0.0, 0.0),
        (InputGradient(1.5, igr_ramp=5.0), 1.25, 0.25),
        (InputGradient(1.5, igr_ramp=5.0), 5.0, 1.0),
        (InputGradient(1.5, igr_ramp=5.0), 80.0, 1.0),
        (InputGradient(1.5), 0.0, 1.0),
        (GPM(100.0, gpm_after=2.0), 1.99, 0.0),
        (GPM(100.0, gpm_after=2.0), 2.0, 1.0),
        (GPM(100.0, gpm_after=2.0, gpm_warmup=4.0), 2.0, 0.0),
        (GPM(100.0, gpm_after=2.0, gpm_warmup=4.0), 3.0, 0.25),
        (GPM(100.0, gpm_after=2.0, gpm_warmup=4.0), 6.0, 1.0),
    ],
)
def test_weights_rise_with_the_epochs(penalty: Penalty, epoch: float, share: float) -> None:
    model, (x, y) = convolutional(), batch()
    objective = Penalised((penalty,))
    plain, whole = (gradient(o, model, x, y) for o in (Penalised(), objective))
    now = gradient(objective.at(epoch), model, x, y)
    log = objective.at(epoch).backward(model, x, y, cross_entropy)
    assert (penalty.tag in log) == (share > 0)
    torch.testing.assert_close(now, plain + share * (whole - plain))
    assert share > 0 or torch.equal(now, plain)
    assert repr(objective.at(epoch)) == repr(objective)
    assert Penalised().at(epoch) == Penalised()
