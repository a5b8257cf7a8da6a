"""Activations swapped in whole models: which, how many, and what cannot be."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from robustbench_gpm.core import UserError
from robustbench_gpm.losses import cross_entropy
from robustbench_gpm.models import ModelOptions, build_model
from robustbench_gpm.models.activations import ACTIVATIONS, with_activation
from robustbench_gpm.objectives import InputGradient, Penalised

RGB = ModelOptions(5, 3, 32, (0.5,) * 3, (0.25,) * 3)
X = torch.linspace(-3, 3, 61, dtype=torch.double)

KINDS = [
    *(nn.ReLU(inplace=True), nn.ReLU6(inplace=True), nn.LeakyReLU(0.2, inplace=True)),
    *(nn.PReLU(), nn.RReLU(), nn.ELU(), nn.CELU(), nn.SELU(), nn.GELU(), nn.GELU("tanh")),
    *(nn.SiLU(inplace=True), nn.Mish(), nn.Hardswish(inplace=True), nn.Softplus()),
]


def count(model: nn.Module, kind: type[nn.Module]) -> int:
    return sum(type(module) is kind for module in model.modules())


def formula(name: str, x: Tensor) -> Tensor:
    return {
        "relu": x.clamp_min(0),
        "gelu": x * (1 + torch.erf(x / math.sqrt(2))) / 2,
        "silu": x / (1 + torch.exp(-x)),
        "softplus": torch.log1p(torch.exp(10 * x)) / 10,
    }[name]


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("kind", KINDS, ids=repr)
def test_every_kind_is_replaced_by_the_formula(kind: nn.Module, name: str) -> None:
    model = nn.Sequential(nn.Identity(), kind)
    assert with_activation(model, name) == 1
    x = X.clone()
    torch.testing.assert_close(model(x), formula(name, X), rtol=1e-9, atol=1e-9)
    assert torch.equal(x, X)  # not in place
    assert not list(model.parameters())


def test_the_table_is_tested_whole_and_its_smooth_ones_are_smooth() -> None:
    for name, make in ACTIVATIONS.items():
        x = torch.tensor([0.01], dtype=torch.double, requires_grad=True)
        (slope,) = torch.autograd.grad(make()(x).sum(), x, create_graph=True)
        (bend,) = torch.autograd.grad(slope.sum() + 0 * x.sum(), x)
        assert (float(bend) > 0.1) == (name != "relu")


def test_gates_stay() -> None:
    gates = (nn.Sigmoid(), nn.Tanh(), nn.Hardsigmoid(), nn.Hardtanh(), nn.Softmax(1), nn.GLU())
    model = nn.Sequential(*gates, nn.ReLU())
    assert with_activation(model, "silu") == 1
    assert tuple(model)[:-1] == gates


def test_one_module_in_two_places_stays_one() -> None:
    shared = nn.ReLU()
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared, nn.ReLU()), "c": shared})
    assert with_activation(model, "gelu") == 2
    assert model["a"] is model["b"][0] is model["c"]  # type: ignore[index]
    assert count(model, nn.GELU) == 2


@pytest.mark.parametrize("name", ["digits_cnn", "vgg11", "torchvision:squeezenet1_1"])
def test_weights_keep_their_names_and_nothing_else_changes(name: str) -> None:
    model = build_model(name, RGB).eval()
    x = torch.rand(2, 3, 32, 32)
    names, before, relus = list(model.state_dict()), model(x), count(model, nn.ReLU)
    assert with_activation(model, "gelu", x) == relus > 0
    assert list(model.state_dict()) == names
    assert count(model, nn.ReLU) == 0
    assert count(model, nn.GELU) == relus
    assert (model(x) - before).abs().max() > 1e-4
    assert with_activation(model, "relu", x) == relus
    assert torch.equal(model(x), before)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet", "test_convnext"])
def test_timms_models(name: str) -> None:
    pytest.importorskip("timm")
    model = build_model(f"timm:{name}", RGB).eval()
    x = torch.rand(1, 3, 32, 32)
    with_activation(model, "softplus", x)
    soft = [m for m in model.modules() if isinstance(m, nn.Softplus)]
    assert soft
    assert all(m.beta == 10 for m in soft)
    assert not any(isinstance(m, (nn.ReLU, nn.GELU, nn.SiLU)) for m in model.modules())
    assert model(x).isfinite().all()


def test_timms_own_classes_are_known() -> None:
    layers = pytest.importorskip("timm.layers")
    own = (layers.Swish, layers.Mish, layers.HardSwish, layers.PReLU, layers.GELU, layers.QuickGELU)
    model = nn.Sequential(*(kind() for kind in own), layers.Sigmoid())
    assert with_activation(model, "relu", torch.rand(2, 3)) == len(own)


class Functional(nn.Module):
    """One activation as a module, others in its code."""

    def __init__(self, *functions: object) -> None:
        super().__init__()
        self.first, self.functions = nn.ReLU(), functions

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for function in self.functions:
            x = function(x)  # type: ignore[operator]
        return x


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (functional.relu, r"relu \(1\)"),
        (torch.relu, r"relu \(1\)"),
        (Tensor.relu, r"relu \(1\)"),
        (Tensor.relu_, r"relu \(1\)"),
        (lambda x: functional.relu(x, inplace=True), r"relu \(1\)"),
        (functional.gelu, r"gelu \(1\)"),
        (functional.hardswish, r"hardswish \(1\)"),
        (functional.leaky_relu_, r"leaky_relu \(1\)"),
    ],
)
def test_functions_in_the_code_are_found_and_refused(function: object, told: str) -> None:
    model = Functional(function)
    assert with_activation(model, "silu") == 1  # without a sample nobody knows
    with pytest.raises(UserError, match=f"calls activations as functions, {told}, which"):
        with_activation(model, "silu", torch.rand(1, 4))


def test_functions_are_counted_and_the_wanted_one_may_stay() -> None:
    model = Functional(torch.relu, functional.gelu, Tensor.relu)
    with pytest.raises(UserError, match=r"functions, gelu \(1\) and relu \(2\), which"):
        with_activation(model, "silu", torch.rand(1, 4))
    assert with_activation(Functional(torch.relu), "relu", torch.rand(1, 4)) == 1


def test_looking_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()).train()
    with_activation(model, "silu", torch.rand(2, 3, 4, 4))
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad for p in model.parameters())
    assert int(model[0].num_batches_tracked) == 0  # type: ignore[arg-type]


def test_transformer_layers_do_not_fall_back_on_the_old_activation() -> None:
    """In evaluation they have a kernel of their own, for ReLU or GELU."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, activation=nn.ReLU(), batch_first=True).eval()
    assert with_activation(layer, "silu", torch.rand(1, 3, 8)) == 1
    x = torch.rand(2, 3, 8)
    slow = layer(x.clone().requires_grad_())
    with torch.no_grad():
        torch.testing.assert_close(layer(x), slow)


@pytest.mark.parametrize("model", [nn.Linear(2, 2), nn.Sequential(nn.Sigmoid()), nn.ReLU()])
def test_a_model_without_activation_modules_is_refused(model: nn.Module) -> None:
    with pytest.raises(UserError, match="no activation modules, such as nn.ReLU"):
        with_activation(model, "gelu")


def test_wrong_names_are_told_in_a_sentence() -> None:
    with pytest.raises(UserError, match="unknown activation 'gleu': did you mean 'gelu'"):
        with_activation(nn.Sequential(nn.ReLU()), "gleu")


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_penalties_can_be_trained_with_each(name: str) -> None:
    model = build_model("digits_cnn", ModelOptions(3, 1, 8, (0.5,), (0.5,)))
    with_activation(model, name)
    x, y = torch.rand(4, 1, 8, 8), torch.randint(0, 3, (4,))
    Penalised((InputGradient(1.0),)).backward(model, x, y, cross_entropy)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
