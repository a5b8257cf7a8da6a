"""SegNeXt: its weights counted, its parts by hand, its decomposition beside scikit-learn's."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from sklearn.decomposition import non_negative_factorization
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from robustbench_gpm.fast import accelerated
from robustbench_gpm.models import ModelOptions
from robustbench_gpm.models.segnext import (
    Block,
    ConvolutionalAttention,
    Decomposition,
    SegNeXt,
    segnext_t,
)
from robustbench_gpm.objectives import GPM, InputGradient, Penalised, Penalty
from robustbench_gpm.tasks.segmentation_losses import pixel_cross_entropy


def tiny() -> SegNeXt:
    torch.manual_seed(0)
    return SegNeXt(
        channels=2,
        classes=3,
        widths=(4, 4, 6, 8),
        depths=(1, 1, 1, 1),
        ratios=(2, 2, 1, 1),
        head_width=8,
        rank=3,
        groups=4,
        drop_path=0.0,
        dropout=0.0,
    )


def batch(size: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(size, 2, 20, 16, generator=generator, dtype=torch.double)
    y = torch.randint(0, 3, (size, 20, 16), generator=generator)
    y[:, :3] = 255
    return x, y


def published() -> SegNeXt:
    with torch.device("meta"):
        network = segnext_t(ModelOptions(150, 3, 512, (0.5,) * 3, (0.25,) * 3))
    assert isinstance(network, SegNeXt)
    return network


def test_segnext_t_has_4_3_million_parameters() -> None:
    count, inputs = 0, 3
    stages = zip((32, 64, 160, 256), (3, 3, 5, 2), (8, 8, 4, 4), strict=True)
    for place, (c, depth, ratio) in enumerate(stages):
        convolutions = [(inputs, c)] if place else [(inputs, c // 2), (c // 2, c)]
        count += sum(9 * i * o + o + 2 * o for i, o in convolutions) + 2 * c  # and a layer norm
        attention = 3 * (c * c + c) + 26 * c + sum(2 * (k * c + c) for k in (7, 11, 21))
        feed_forward = (c + 1) * c * ratio + 10 * c * ratio + (c * ratio + 1) * c
        count += depth * (attention + feed_forward + 2 * 2 * c + 2 * c)
        inputs = c
    head = (64 + 160 + 256) * 256 + 3 * 256 * 256 + 256 + 3 * 2 * 256 + 150 * 257
    total = sum(parameter.numel() for parameter in published().parameters())
    assert total == count + head
    assert total == pytest.approx(4.3e6, abs=0.05e6)


def test_drop_path_rises_in_a_line_to_a_tenth() -> None:
    drops = [m.drop for m in published().modules() if isinstance(m, Block)]
    found = [drop.p if isinstance(drop, StochasticDepth) else 0 for drop in drops]
    assert found == pytest.approx([0.1 * place / 12 for place in range(13)])


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (32, 32), (33, 48)])
def test_logits_come_at_the_images_size(size: tuple[int, int]) -> None:
    assert tiny().eval()(torch.rand(2, 2, *size)).shape == (2, 3, *size)


def test_features_are_at_4_8_16_and_32_pixels_a_place() -> None:
    features = tiny().eval().encoder(torch.rand(1, 2, 96, 64))
    assert [tuple(f.shape[2:]) for f in features] == [(24, 16), (12, 8), (6, 4), (3, 2)]


def test_strips_are_large_kernels_that_are_products() -> None:
    """A row's convolution and then a column's is one by their outer product."""
    torch.manual_seed(2)
    attention, x = ConvolutionalAttention(3), torch.randn(2, 3, 30, 30)
    for module in attention.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.zeros_(module.bias)
    near = nn.functional.conv2d(x, attention.near.weight, padding=2, groups=3)
    total = near
    for strip, length in zip(attention.strips, (7, 11, 21), strict=True):
        kernel = strip[1].weight * strip[0].weight  # (3,1,length,1) * (3,1,1,length)
        assert kernel.shape == (3, 1, length, length)
        total = total + nn.functional.conv2d(near, kernel, padding=length // 2, groups=3)
    mixed = torch.einsum("oi,bihw->bohw", attention.mix.weight[..., 0, 0], total)
    torch.testing.assert_close(attention(x), mixed * x, rtol=1e-4, atol=1e-5)


def test_a_new_block_adds_a_hundredth_of_what_it_finds() -> None:
    torch.manual_seed(3)
    block, x = Block(6, 2, 0.0).eval(), torch.randn(2, 6, 9, 9)
    block.norm.running_mean, block.norm.running_var = torch.randn(6), torch.rand(6) + 0.5
    normed = block.norm(x)
    attended = x + 0.01 * (normed + block.attention(normed))
    torch.testing.assert_close(block(x), attended + 0.01 * block.feed_forward(attended))


@pytest.mark.parametrize(("training", "steps"), [(True, 6), (False, 7)])
def test_the_decomposition_is_scikit_learn_s(training: bool, steps: int) -> None:
    ham = Decomposition(8, 3).double().train(training)
    x = torch.rand(1, 8, 4, 5, dtype=torch.double) + 0.1
    rows = x[0].flatten(1).T.numpy()
    bases = ham.bases.numpy().T.copy()
    coefficients = torch.softmax(torch.from_numpy(rows @ bases.T), 1).numpy()
    w, h, _ = non_negative_factorization(
        *(rows, coefficients.copy(), bases, 3), init="custom", solver="mu", tol=0, max_iter=steps
    )
    last = w * (rows @ h.T) / (w @ (h @ h.T))  # the coefficients are updated once more
    expected = (last @ h).T.reshape(8, 4, 5)
    np.testing.assert_allclose(ham(x)[0].numpy(), expected, rtol=1e-4)


def test_the_decomposition_is_twice_differentiable() -> None:
    ham = Decomposition(4, 2).double()
    x = (torch.rand(2, 4, 2, 3, dtype=torch.double) + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(ham, x)
    assert torch.autograd.gradgradcheck(ham, x)


def test_the_same_image_gives_the_same_logits_whoever_is_beside_it() -> None:
    network, (x, _) = tiny().double().eval(), batch()
    first = network(x)
    torch.rand(5)
    assert torch.equal(network(x), first)
    torch.testing.assert_close(network(x[1:2]), first[1:2])
    torch.manual_seed(5)
    assert torch.equal(Decomposition(8, 3).bases, network.head.ham[2].bases.float())


def test_the_bases_are_no_part_of_the_weights() -> None:
    assert not [key for key in tiny().state_dict() if "bases" in key]


def gradients(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize(
    "penalty", [InputGradient(3000.0, "l2sq", 1.0), GPM(50000.0, 0.7)], ids=repr
)
def test_penalties_have_the_gradient_of_finite_differences(
    penalty: Penalty, training: bool
) -> None:
    model, (x, y) = tiny().double().train(training), batch()
    objective = Penalised((penalty,))

    def value(shift: Tensor) -> float:
        other = copy.deepcopy(model)
        flat = nn.utils.parameters_to_vector(model.parameters()) + shift
        nn.utils.vector_to_parameters(flat, other.parameters())
        log = objective.backward(other, x, y, pixel_cross_entropy)
        return float(log["loss"]) + penalty.weight * float(log[penalty.tag])

    plain = copy.deepcopy(model)
    Penalised().backward(plain, x, y, pixel_cross_entropy)
    objective.backward(model, x, y, pixel_cross_entropy)
    exact = gradients(model)
    direction = torch.randn_like(exact)
    step = 1e-6
    expected = (value(step * direction) - value(-step * direction)) / (2 * step)
    assert float(exact @ direction) == pytest.approx(expected, rel=1e-4)
    assert float((exact - gradients(plain)).norm()) > float(gradients(plain).norm())


def test_attacks_can_search_on_a_fused_copy() -> None:
    copy_, description = accelerated(tiny().eval(), torch.rand(2, 2, 20, 16))
    assert description["fused"]
    assert copy_(torch.rand(3, 2, 32, 24)).shape == (3, 3, 32, 24)
