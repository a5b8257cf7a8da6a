"""PyramidNet: its widths and weights, its blocks by hand, and what ShakeDrop does to each pass."""

import pytest
import torch
from torch import nn

from robustbench_gpm.core import UserError
from robustbench_gpm.models import MODELS, ModelOptions
from robustbench_gpm.models.activations import with_activation
from robustbench_gpm.models.pyramidnet import (
    PyramidBottleneck,
    ShakeDrop,
    block_widths,
    pyramidnet,
)

RGB = ModelOptions(10, 3, 32, (0.5,) * 3, (0.25,) * 3)


def small(classes: int = 5) -> nn.Module:
    torch.manual_seed(0)
    return pyramidnet(11, 6, ModelOptions(classes, 3, 8, (0.5,) * 3, (0.25,) * 3))


def blocks_of(network: nn.Module) -> list[PyramidBottleneck]:
    return [module for module in network if isinstance(module, PyramidBottleneck)]


def images(count: int = 3, size: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, 3, size, size, generator=generator)


@pytest.fixture(scope="module")
def large() -> nn.Module:
    with torch.device("meta"):
        return MODELS["pyramidnet272"](RGB)


def test_pyramidnet272_has_26_million_parameters(large):
    count, inputs = 27 * 16 + 2 * 16, 16
    for block in range(1, 91):
        width = int(16 + 200 * block / 90 + 0.5)
        weights = inputs * width + 9 * width**2 + 4 * width**2
        count += weights + 2 * (inputs + width + width + 4 * width)
        inputs = 4 * width
    count += 2 * inputs + 10 * inputs + 10
    assert sum(parameter.numel() for parameter in large.parameters()) == count
    assert count == pytest.approx(26.2e6, abs=0.05e6)


def test_pyramidnet272_has_272_layers_and_halves_twice(large):
    layers = [module for module in large.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert len(layers) == 272
    strides = [block.conv2.stride[0] for block in blocks_of(large)]
    assert [place for place, stride in enumerate(strides) if stride == 2] == [30, 60]


def test_survival_falls_in_a_line_to_a_half(large):
    found = [block.shake.survival for block in blocks_of(large)]
    assert found == pytest.approx([1 - block / 180 for block in range(1, 91)])
    assert found[-1] == 0.5


def test_widths_grow_by_the_same_step():
    assert block_widths(11, 6) == [18, 20, 22]
    widths = block_widths(272, 200)
    assert len(widths) == 90
    assert widths[:4] == [18, 20, 23, 25]
    assert widths[-1] == 216
    for block, width in enumerate(widths, start=1):
        assert abs(width - (16 + 200 * block / 90)) < 0.5


@pytest.mark.parametrize("depth", [2, 10, 12, 273, -7])
def test_depths_that_cannot_be_are_refused(depth):
    with pytest.raises(UserError, match=r"9 n \+ 2"):
        block_widths(depth, 200)


@pytest.mark.parametrize("size", [5, 8, 9])
def test_any_size_gives_a_logit_a_class(size):
    logits = small(7)(images(2, size))
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()


@pytest.mark.parametrize("stride", [1, 2])
def test_a_block_in_evaluation_is_the_paper_s_by_hand(stride):
    torch.manual_seed(2)
    block = PyramidBottleneck(6, 3, stride, survival=0.75)
    for norm in (block.norm1, block.norm2, block.norm3, block.norm4):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias)
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    x = torch.randn(2, 6, 4, 4)
    block.eval()
    inner = nn.functional.conv2d(block.norm1(x), block.conv1.weight)
    inner = block.norm2(inner).clamp(min=0)
    inner = nn.functional.conv2d(inner, block.conv2.weight, stride=stride, padding=1)
    inner = nn.functional.conv2d(block.norm3(inner).clamp(min=0), block.conv3.weight)
    shortcut = x
    if stride == 2:
        shortcut = x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]
        shortcut = shortcut / 4
    expected = 0.75 * block.norm4(inner)
    expected[:, :6] += shortcut
    torch.testing.assert_close(block(x), expected)


def test_evaluation_repeats_itself_and_draws_nothing():
    network = small()
    x = images()
    torch.manual_seed(3)
    assert not torch.equal(network(x), network(x))
    network.eval()
    state = torch.get_rng_state()
    assert torch.equal(network(x), network(x))
    assert torch.equal(state, torch.get_rng_state())


def test_training_repeats_itself_from_the_same_seed():
    network, x = small(), images()
    torch.manual_seed(4)
    first = network(x)
    torch.manual_seed(4)
    assert torch.equal(network(x), first)


def factors(shake: ShakeDrop, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The factors (count,) of both passes, as the output of ones and autograd show them."""
    x = torch.ones(count, 2, 3, 3, dtype=torch.double, requires_grad=True)
    output = shake(x)
    (gradient,) = torch.autograd.grad(output.sum(), x)
    found = []
    for values in (output.detach(), gradient):
        torch.testing.assert_close(values, values[:, :1, :1, :1].expand_as(values))
        found.append(values[:, 0, 0, 0])
    return found[0], found[1]


def test_shakedrop_s_factors_have_the_paper_s_distributions():
    count, survival = 40_000, 0.7
    torch.manual_seed(5)
    forward, backward = factors(ShakeDrop(survival), count)
    kept = (forward == 1) & (backward == 1)
    assert float(kept.double().mean()) == pytest.approx(survival, abs=0.01)
    alpha, beta = forward[~kept], backward[~kept]
    for values, low, high in ((alpha, -1, 1), (beta, 0, 1)):
        assert low <= values.min() < low + 0.01
        assert high - 0.01 < values.max() <= high
        assert float(values.mean()) == pytest.approx((low + high) / 2, abs=0.03)
        assert float(values.std()) == pytest.approx((high - low) / 12**0.5, rel=0.03)
    both = torch.stack([alpha, beta])
    assert abs(float(torch.corrcoef(both)[0, 1])) < 0.04


def test_evaluation_takes_the_mean_of_the_forward_factors():
    shake = ShakeDrop(0.6)
    torch.manual_seed(6)
    mean = float(factors(shake, 40_000)[0].mean())
    forward, backward = factors(shake.eval(), 3)
    assert torch.equal(forward, torch.full((3,), 0.6, dtype=torch.double))
    assert torch.equal(backward, forward)
    assert mean == pytest.approx(0.6, abs=0.01)


def test_the_second_derivative_takes_the_backward_factor_twice():
    shake = ShakeDrop(0.5)
    x = torch.linspace(0.5, 2, 12, dtype=torch.double).view(12, 1, 1, 1).requires_grad_()
    torch.manual_seed(7)
    forward, backward = (f.view(12, 1, 1, 1) for f in factors(shake, 12))
    torch.manual_seed(7)
    value = shake(x).pow(3).sum()
    (first,) = torch.autograd.grad(value, x, create_graph=True)
    torch.testing.assert_close(first, backward * 3 * (forward * x).pow(2))
    (second,) = torch.autograd.grad(first.sum(), x)
    torch.testing.assert_close(second, backward**2 * 6 * forward * x)
    assert (forward != backward).any()


def test_input_gradients_can_be_differentiated_by_every_weight():
    network = small().double().train()
    x = images().double().requires_grad_()
    loss = nn.functional.cross_entropy(network(x), torch.tensor([0, 1, 2]), reduction="sum")
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    gradient.pow(2).sum().backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        if parameter.dim() == 4:
            assert parameter.grad.abs().sum() > 0, key


def test_second_derivatives_are_right_in_evaluation():
    network = small().double()
    with_activation(network, "softplus")
    network.eval()
    x = images(2).double().requires_grad_()
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(8)).double()

    def gradient(at: torch.Tensor) -> torch.Tensor:
        loss = nn.functional.cross_entropy(network(at), torch.tensor([0, 1]), reduction="sum")
        return torch.autograd.grad(loss, at, create_graph=True)[0]

    (exact,) = torch.autograd.grad((gradient(x) * direction).sum(), x)
    step = 1e-5
    ends = [gradient((x + sign * step * direction).detach().requires_grad_()) for sign in (1, -1)]
    measured = (ends[0] - ends[1]).detach() / (2 * step)
    assert exact.norm() > 0
    torch.testing.assert_close(exact, measured, rtol=1e-4, atol=1e-6 * float(exact.norm()))


def test_every_activation_can_be_swapped():
    network = small()
    x = images(1)
    assert with_activation(network, "gelu", x) == 2 * 3 + 1
    assert not any(isinstance(module, nn.ReLU) for module in network.modules())
