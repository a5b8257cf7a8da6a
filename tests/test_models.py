"""The package's own networks: their shapes, sizes, values and second derivatives."""

import pytest
import torch
import torchvision
from torch import nn

from robustbench_gpm.core import UserError
from robustbench_gpm.models import MODELS, ModelOptions, Normalised, build_model
from robustbench_gpm.models.resnet import PreActivationBlock

RGB = ModelOptions(10, 3, 32, (0.49, 0.48, 0.45), (0.25, 0.24, 0.26))
GREY = ModelOptions(10, 1, 8, (0.3,), (0.4,))


def options_of(name: str, size: int = 32) -> ModelOptions:
    return ModelOptions(7, 3, size, (0.5,) * 3, (0.25,) * 3)


def smallest(name: str) -> int:
    return 32 if name.startswith("vgg") else 8


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_every_model_gives_a_logit_a_class(name):
    x = torch.rand(1, 3, 32, 32)
    logits = build_model(name, options_of(name)).eval()(x)
    assert logits.shape == (1, 7)
    assert logits.isfinite().all()


@pytest.mark.parametrize(
    ("name", "size"), [("vgg11", 48), ("resnet18", 20), ("resnet8", 8), ("digits_cnn", 11)]
)
def test_other_image_sizes_work(name, size):
    model = build_model(name, options_of(name, size)).eval()
    assert model(torch.rand(2, 3, size, size)).shape == (2, 7)


@pytest.mark.parametrize("name", MODELS)
def test_input_gradients_can_be_differentiated_by_every_weight(name):
    size = smallest(name)
    torch.manual_seed(0)
    model = build_model(name, options_of(name, size)).train()
    x = torch.rand(3, 3, size, size, requires_grad=True)
    loss = nn.functional.cross_entropy(model(x), torch.tensor([0, 1, 2]), reduction="sum")
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    gradient.pow(2).sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        if parameter.dim() == 4:
            assert parameter.grad.abs().sum() > 0, key


def test_the_second_derivative_is_right():
    torch.manual_seed(1)
    model = build_model("digits_cnn", GREY).double().train()
    x = torch.rand(4, 1, 8, 8, dtype=torch.double, requires_grad=True)
    y = torch.tensor([0, 3, 5, 9])

    def penalty() -> torch.Tensor:
        loss = nn.functional.cross_entropy(model(x), y, reduction="sum")
        return torch.autograd.grad(loss, x, create_graph=True)[0].pow(2).sum()

    weights = list(model.parameters())
    directions = [torch.randn_like(weight) for weight in weights]
    slopes = torch.autograd.grad(penalty(), weights)
    exact = sum((s * d).sum() for s, d in zip(slopes, directions, strict=True))
    step, values = 1e-7, []
    for sign in (1, -2):  # to +step, then from there to -step
        with torch.no_grad():
            for weight, direction in zip(weights, directions, strict=True):
                weight.add_(direction, alpha=sign * step)
        values.append(penalty().detach())
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(float(exact), rel=1e-4)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("vgg11", 9_228_362),  # 9.2 million; the common 9,231,114 counts biases that norms undo
        ("resnet18", 11_173_962),
        ("preact_resnet18", 11_172_170),
        ("wrn28_10", 36_479_194),
    ],
)
def test_parameter_counts_are_the_published_ones(name, count):
    with torch.device("meta"):
        network = MODELS[name](RGB)
    assert parameters(network) == count


def test_wrn28_10_has_28_convolutions():
    with torch.device("meta"):
        network = MODELS["wrn28_10"](RGB)
    assert sum(isinstance(module, nn.Conv2d) for module in network.modules()) == 28


def test_two_digit_networks_stay_under_a_megabyte():
    count = parameters(MODELS["digits_cnn"](GREY))
    assert 30_000 <= count <= 60_000
    assert 2 * 4 * count < 1_000_000


def with_random_norms(network: nn.Module) -> nn.Module:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return network.eval()


def copy_in_order(source: nn.Module, target: nn.Module) -> None:
    values, names = source.state_dict().values(), target.state_dict().keys()
    target.load_state_dict(dict(zip(names, values, strict=True)))


def test_resnet18_is_torchvision_s_but_for_the_stem():
    own = with_random_norms(MODELS["resnet18"](RGB))
    other = torchvision.models.resnet18(num_classes=10)
    other.conv1, other.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    copy_in_order(own, other)
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(own(x), other.eval()(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("depth", [11, 13, 16, 19])
def test_vgg_has_torchvision_s_features(depth):
    own = with_random_norms(MODELS[f"vgg{depth}"](RGB))
    with torch.device("meta"):
        features = torchvision.models.get_model(f"vgg{depth}_bn").features
    features = features.to_empty(device="cpu").eval()
    convolutions = [module for module in features if isinstance(module, nn.Conv2d)]
    for convolution in convolutions:
        convolution.bias = None
    body, head = own[: len(features)], own[len(features) :]
    copy_in_order(body, features)
    x = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(own(x), head(features(x)), rtol=1e-4, atol=1e-4)


def test_a_preactivation_block_adds_to_what_came_in():
    block = PreActivationBlock(4, 4, 1)
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 4, 6, 6)
    assert torch.equal(block(x), x)


def test_a_preactivation_block_projects_activated_features():
    block = PreActivationBlock(4, 8, 2).eval()
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 4, 6, 6)
    expected = block.projection(block.norm1(x).relu())
    torch.testing.assert_close(block(x), expected)


def test_normalised_is_normalisation_by_hand():
    network = MODELS["digits_cnn"](RGB).eval()
    x = torch.rand(3, 3, 32, 32)
    by_hand = torch.stack([(x[:, c] - RGB.mean[c]) / RGB.std[c] for c in range(3)], 1)
    wrapped = Normalised(network, RGB.mean, RGB.std)
    torch.testing.assert_close(wrapped(x), network(by_hand))
    assert {"mean", "std"} <= wrapped.state_dict().keys()


def test_build_model_normalises_with_the_options():
    model = build_model("digits_cnn", GREY)
    assert isinstance(model, Normalised)
    assert model.mean.flatten().tolist() == pytest.approx([0.3])
    assert model.std.flatten().tolist() == pytest.approx([0.4])


@pytest.mark.parametrize("name", ["vgg11", "digits_cnn"])
def test_too_small_images_are_refused(name):
    small = smallest(name) - 1
    with pytest.raises(UserError, match=f"at least {small + 1} pixels, and these have {small}"):
        build_model(name, options_of(name, small))


def test_an_unknown_model_is_answered_with_a_close_one_and_the_other_forms():
    with pytest.raises(UserError, match=r"did you mean 'resnet18'\?.*timm:<name>.*onnx:<file>"):
        build_model("resnet18x", RGB)


def test_own_models_have_no_published_weights():
    with pytest.raises(UserError, match="no published weights for 'vgg11'"):
        build_model("vgg11", ModelOptions(10, 3, 32, (0.0,) * 3, (1.0,) * 3, pretrained=True))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((0, 3, 32, (0.0,) * 3, (1.0,) * 3), "at least one class"),
        ((10, 3, 32, (0.0,), (1.0,) * 3), "one mean and one std for each of 3 channels"),
        ((10, 1, 32, (0.0,), (0.0,)), "must be above 0"),
    ],
)
def test_impossible_options_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        ModelOptions(*given)
