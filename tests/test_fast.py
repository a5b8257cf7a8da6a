"""The accelerated copy: as good as the model, never the model itself."""

import copy

import pytest
import torch
from torch import nn

from robustbench_gpm.fast import accelerated
from robustbench_gpm.models import ModelOptions, build_model

OPTIONS = ModelOptions(10, 3, 32, (0.49, 0.48, 0.45), (0.25, 0.24, 0.26))


def with_random_norms(network: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return network


def input_gradient(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    x = x.clone().requires_grad_()
    loss = nn.functional.cross_entropy(model(x), torch.zeros(len(x), dtype=torch.long))
    return torch.autograd.grad(loss, x)[0]


@pytest.mark.parametrize(("name", "size"), [("vgg11", 32), ("resnet18", 8), ("preact_resnet18", 8)])
def test_the_copy_agrees_on_images_it_was_not_compared_on(name, size):
    model = with_random_norms(build_model(name, OPTIONS)).double()
    fast, about = accelerated(model, torch.rand(1, 3, size, size).double())
    assert about["fused"] is True
    assert about["channels_last"] is True
    x = torch.rand(2, 3, size, size).double()
    model.eval()
    torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(input_gradient(fast, x), input_gradient(model, x))


def test_it_agrees_in_single_precision_and_says_by_how_much():
    model = with_random_norms(build_model("vgg11", OPTIONS)).eval()
    x = torch.rand(4, 3, 32, 32)
    fast, about = accelerated(model, x)
    worst = (fast(x) - model(x)).abs().max().item()
    assert worst < 1e-4
    assert about["largest_logit_difference"] == pytest.approx(worst, abs=1e-5)


def test_norms_are_gone_where_a_convolution_or_linear_layer_comes_before():
    head = [nn.Flatten(), nn.Linear(8 * 16, 5), nn.BatchNorm1d(5)]
    model = with_random_norms(nn.Sequential(nn.Conv2d(3, 8, 5), nn.BatchNorm2d(8), *head))
    fast, about = accelerated(model, torch.rand(2, 3, 8, 8))
    assert about["fused"] is True
    assert not any("BatchNorm" in type(module).__name__ for module in fast.modules())
    assert "why" not in about


def test_weights_are_laid_out_with_channels_last():
    fast, _ = accelerated(build_model("digits_cnn", OPTIONS), torch.rand(2, 3, 32, 32))
    kernels = [parameter for parameter in fast.parameters() if parameter.dim() == 4]
    assert kernels
    assert all(k.is_contiguous(memory_format=torch.channels_last) for k in kernels)


@pytest.mark.parametrize("training", [True, False])
def test_the_original_stays_as_it_was(training):
    model = build_model("digits_cnn", OPTIONS).train(training)
    model.network[1].eval()
    model.network[0].weight.requires_grad_(False)
    model.network[4].weight.grad = torch.ones_like(model.network[4].weight)
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    state = copy.deepcopy(model.state_dict())
    strides = [parameter.stride() for parameter in model.parameters()]
    modes = [module.training for module in model.modules()]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    modules = list(model.modules())

    fast, _ = accelerated(model, torch.rand(2, 3, 32, 32))

    assert fast is not model
    assert all(torch.equal(state[key], tensor) for key, tensor in model.state_dict().items())
    assert [parameter.stride() for parameter in model.parameters()] == strides
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert torch.equal(model.network[4].weight.grad, torch.ones_like(model.network[4].weight))
    assert len(model._forward_hooks) == 1
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))


def test_the_copy_is_frozen_and_shares_nothing():
    model = build_model("digits_cnn", OPTIONS).train()
    fast, _ = accelerated(model, torch.rand(2, 3, 32, 32))
    assert not any(module.training for module in fast.modules())
    assert not any(parameter.requires_grad for parameter in fast.parameters())
    own = {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    assert not any(t.data_ptr() in own for t in (*fast.parameters(), *fast.buffers()))


class Branching(nn.Module):
    """Looks at its data to decide what to do, which no tracer can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        features = self.norm(self.conv(x)).mean((2, 3))
        return features if x.mean() > 0 else -features


def test_an_untraceable_model_is_copied_plainly_and_why_is_told():
    model = with_random_norms(Branching()).eval()
    x = torch.rand(2, 3, 8, 8)
    fast, about = accelerated(model, x)
    assert about["fused"] is False
    assert about["channels_last"] is True
    assert "control flow" in about["why"]
    assert fast is not model
    torch.testing.assert_close(fast(x), model(x))
    torch.testing.assert_close(fast(-x), model(-x))


class Viewing(Branching):
    """Needs its features in the usual layout."""

    def forward(self, x):
        return self.norm(self.conv(x)).view(len(x), -1)


def test_a_model_that_cannot_take_channels_last_is_left_in_its_layout():
    model = with_random_norms(Viewing()).eval()
    x = torch.rand(2, 3, 8, 8)
    fast, about = accelerated(model, x)
    assert about["channels_last"] is False
    torch.testing.assert_close(fast(x), model(x))


class Detached(Branching):
    """Hides a path from the gradient in a way that tracing forgets."""

    def forward(self, x):
        with torch.no_grad():
            hidden = x * x
        return (self.norm(self.conv(x + hidden))).mean((2, 3))


def test_a_copy_with_another_gradient_is_not_used():
    model = with_random_norms(Detached()).eval()
    x = torch.rand(2, 3, 8, 8)
    fast, about = accelerated(model, x)
    assert about["fused"] is False
    assert "input gradient" in about["why"]
    torch.testing.assert_close(input_gradient(fast, x), input_gradient(model, x))


class Baked(Branching):
    """Answers a tracer otherwise than it answers images, with the same gradient."""

    def forward(self, x):
        logits = self.norm(self.conv(x)).mean((2, 3))
        return logits if isinstance(x, torch.Tensor) else logits + 1


def test_a_copy_with_other_logits_is_not_used():
    model = with_random_norms(Baked()).eval()
    x = torch.rand(2, 3, 8, 8)
    fast, about = accelerated(model, x)
    assert about["fused"] is False
    assert "differs by 1 in logits" in about["why"]
    torch.testing.assert_close(fast(x), model(x))


class Shared(nn.Module):
    """One convolution under two norms: folding one into it would spoil the other."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norms = nn.ModuleList([nn.BatchNorm2d(4), nn.BatchNorm2d(4)])

    def forward(self, x):
        return (self.norms[0](self.conv(x)) + self.norms[1](self.conv(x))).mean((2, 3))


def test_a_shared_convolution_is_not_spoilt():
    model = with_random_norms(Shared()).eval()
    x = torch.rand(2, 3, 8, 8)
    fast, about = accelerated(model, x)
    assert about["fused"] is False
    torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-4)


def test_hooks_are_kept_rather_than_fused_away():
    model = with_random_norms(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten()))
    model.eval()[1].register_forward_hook(lambda module, given, output: 2 * output)
    x = torch.rand(2, 3, 8, 8)
    fast, about = accelerated(model, x)
    assert about["fused"] is False
    assert "hooks" in about["why"]
    torch.testing.assert_close(fast(x), model(x))


def test_nothing_to_fold_is_told():
    fast, about = accelerated(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), torch.rand(2, 3, 2, 2))
    assert about["fused"] is False
    assert "no batch norm" in about["why"]
    assert isinstance(fast, nn.Sequential)


class Lists(nn.Module):
    def forward(self, x):
        return [x]


def test_a_model_that_gives_no_tensor_is_copied_plainly():
    model = Lists()
    fast, about = accelerated(model, torch.rand(1, 3, 4, 4))
    assert about["fused"] is False
    assert about["channels_last"] is False
    assert "not compared" in about["why"]
    assert fast is not model


def test_a_model_that_cannot_be_copied_is_itself_returned():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    model[1].scaled = model[1].weight * 2  # not a leaf
    fast, about = accelerated(model, torch.rand(2, 3, 2, 2))
    assert fast is model
    assert "cannot be copied" in about["why"]
    assert model[1].weight.requires_grad
