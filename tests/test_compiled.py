"""Compiled models: the same steps as without the compiler, and refusals in one sentence."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from robustbench_gpm.attacks import ATTACKS
from robustbench_gpm.compiled import compiled, first_order
from robustbench_gpm.core import UserError
from robustbench_gpm.losses import cross_entropy
from robustbench_gpm.models import ModelOptions, build_model
from robustbench_gpm.objectives import (
    GPM,
    AdversarialOptions,
    FlowGradient,
    GNPOptions,
    InputGradient,
    Objective,
    Penalised,
    PenaltyMode,
)
from robustbench_gpm.objectives.awp import AdversarialWeights
from robustbench_gpm.objectives.edges import EdgeOptions
from robustbench_gpm.objectives.sagm import SAGMOptions

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
DIFFERENCES = PenaltyMode("finite_difference")
PLAIN = Penalised()
FIRST_ORDER = {
    "baseline": PLAIN,
    "finite_difference": Penalised((FlowGradient(3000.0),), DIFFERENCES),
    "sam": GNPOptions(sam_rho=0.5).around(PLAIN),
    "awp": AdversarialWeights(0.1).around(PLAIN),
}


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[nn.Module, nn.Module]]:
    """A network in training mode, and the same compiled."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = build_model("digits_cnn", ModelOptions(10, 1, 8, (0.5,), (0.5,))).train()
    yield model, compiled(model)
    torch._dynamo.reset()


def batch(size: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(size)
    x = torch.rand(size, 1, 8, 8, generator=generator)
    return x, torch.randint(10, (size,), generator=generator)


def step(
    objective: Objective, model: nn.Module, bare: nn.Module, x: Tensor, y: Tensor
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """The gradient, the buffers after the step, and the log; `bare` is put back."""
    state = {name: value.clone() for name, value in bare.state_dict().items()}
    bare.zero_grad()
    torch.manual_seed(3)
    log = objective.backward(model, x, y, cross_entropy)
    gradient = torch.cat([p.grad.flatten() for p in bare.parameters()])
    buffers = {name: buffer.clone() for name, buffer in bare.named_buffers()}
    bare.load_state_dict(state)
    return gradient, buffers, log


@needs_compiler
@pytest.mark.parametrize("name", FIRST_ORDER)
def test_a_compiled_step_is_the_same_step(name: str, pair: tuple[nn.Module, nn.Module]) -> None:
    bare, (x, y) = pair[0], batch(16)
    expected, found = (step(FIRST_ORDER[name], model, bare, x, y) for model in pair)
    plain, _, _ = step(PLAIN, bare, bare, x, y)
    assert (found[0] - expected[0]).norm() < 1e-3 * expected[0].norm()
    assert name == "baseline" or (plain - expected[0]).norm() > 0.05 * expected[0].norm()
    torch.testing.assert_close(found[1:], expected[1:], rtol=1e-4, atol=1e-5)


@needs_compiler
def test_moved_weights_are_nothing_new_to_the_compiler(pair: tuple[nn.Module, nn.Module]) -> None:
    """Though the compiled gradient may be laid out in another way than the weights."""
    bare, fast = pair
    step(PLAIN, fast, bare, *batch(16))
    before = counters["stats"]["unique_graphs"]
    for name in ("sam", "awp"):
        step(FIRST_ORDER[name], fast, bare, *batch(16))
    assert counters["stats"]["unique_graphs"] == before


@needs_compiler
def test_parameters_are_shared_and_the_bare_model_keeps_its_names(
    pair: tuple[nn.Module, nn.Module],
) -> None:
    bare, fast = pair
    names = list(bare.state_dict())
    assert all(a is b for a, b in zip(bare.parameters(), fast.parameters(), strict=True))
    assert all(a is b for a, b in zip(bare.buffers(), fast.buffers(), strict=True))
    step(FIRST_ORDER["sam"], fast, bare, *batch(16))
    assert list(bare.state_dict()) == names
    assert not any("_orig_mod" in name for name in names)
    bare.eval()
    assert not fast.training
    fast.train()
    assert all(module.training for module in bare.modules())


def test_other_batches_and_switches_of_mode_are_compiled_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the compiler's last part left out, which takes longest, and sees to none of this."""
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    layers = (nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    bare = nn.Sequential(*layers).train()
    fast = compiled(bare)
    attacked = AdversarialOptions("pgd", adversarial_steps=2).around(FIRST_ORDER["sam"])

    def epoch(sizes: tuple[int, ...]) -> int:
        for size in sizes:
            step(attacked, fast, bare, *batch(size))
            bare.eval()
            with torch.no_grad():
                bare(batch(50)[0])
            bare.train()
        return counters["stats"]["unique_graphs"]

    before = counters["stats"]["unique_graphs"]
    first = epoch((16, 16, 9))
    assert first - before == 4  # training and the attack's evaluation, for one size and for any
    assert epoch((16, 9, 16, 5, 12)) == first


@needs_compiler
def test_an_attack_may_pass_a_graph_twice() -> None:
    torch.manual_seed(0)
    bare = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 10)).eval()
    x, _ = batch(4)
    y = bare(x).argmax(1)
    expected, found = (
        ATTACKS["deepfool"](model, x, y, budget=1.0, loss=cross_entropy)
        for model in (bare, compiled(bare))
    )
    assert not torch.equal(expected, x)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_without_a_compiler_one_sentence_says_so() -> None:
    torch._dynamo.reset()
    with (
        torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}),
        pytest.raises(UserError, match=r"nothing can be compiled here \(.*\): install a C\+\+"),
    ):
        compiled(nn.Linear(2, 2))


def test_objectives_know_whether_they_take_second_derivatives() -> None:
    exact, lazy = Penalised((InputGradient(1.0),)), PenaltyMode("lazy", lazy_steps=2)
    several = Penalised((GPM(1.0), InputGradient(1.0)), DIFFERENCES)
    around = [
        GNPOptions(gnp_alpha=0.8).around,
        SAGMOptions(0.05).around,
        AdversarialWeights(0.01).around,
        *(AdversarialOptions(name).around for name in ("pgd", "trades", "free", "fgsm-rs", "flow")),
    ]
    for inner in (*FIRST_ORDER.values(), several):
        assert first_order(inner)
        assert all(first_order(layer(inner)) for layer in around)
        edges = EdgeOptions(1.0).around(inner)
        assert not any(first_order(o) for o in (edges, *(layer(edges) for layer in around)))
    for inner in (exact, Penalised((GPM(1.0),), lazy, batches=7)):
        assert not first_order(inner)
        assert not any(first_order(layer(inner)) for layer in around)
