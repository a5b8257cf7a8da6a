"""Networks with a logit for every pixel: sizes, channels, heads, names, and what is refused."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from robustbench_gpm.core import UserError
from robustbench_gpm.models import ModelOptions
from robustbench_gpm.models.activations import with_activation
from robustbench_gpm.models.checks import check_output
from robustbench_gpm.models.segmentation import (
    SEGMENTERS,
    TORCHVISION,
    Padded,
    UNet,
    digits_segmenter,
    smp_network,
    torchvision_segmenter,
)
from robustbench_gpm.objectives import InputGradient, Penalised
from robustbench_gpm.tasks.segmentation_losses import pixel_cross_entropy

SMALL = "lraspp_mobilenet_v3_large"


def options(channels: int = 3, classes: int = 5, **more: Any) -> ModelOptions:
    return ModelOptions(classes, channels, 32, (0.0,) * channels, (1.0,) * channels, **more)


def wide() -> ModelOptions:
    """For images of 24 x 40 pixels."""
    return replace(options(), task="segmentation", image_height=24, image_size=40)


@pytest.mark.parametrize("name", SEGMENTERS)
def test_logits_of_grey_images_come_at_their_size(name: str) -> None:
    model = SEGMENTERS[name](options(1)).eval()
    with torch.no_grad():
        assert model(torch.rand(1, 1, 21, 34)).shape == (1, 5, 21, 34)


@pytest.mark.parametrize("name", TORCHVISION)
def test_logits_and_weights_are_torchvision_s_own(name: str) -> None:
    ours = torchvision_segmenter(name, options()).eval()
    theirs = torchvision.models.get_model(
        name, weights=None, weights_backbone=None, num_classes=5
    ).eval()
    theirs.load_state_dict(ours.state_dict())
    x = torch.rand(1, 3, 33, 40)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x)["out"])


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """In place of a download: torchvision's own builders, without their weights."""
    build, built = torchvision.models.get_model, []

    def fetched(name: str, weights: str) -> nn.Module:
        assert weights == "DEFAULT"
        aux = {} if name.startswith("lraspp") else {"aux_loss": True}
        built.append(build(name, weights=None, weights_backbone=None, num_classes=21, **aux))
        return built[-1]

    monkeypatch.setattr(torchvision.models, "get_model", fetched)
    return built


@pytest.mark.parametrize("classes", [5, 21])
@pytest.mark.parametrize("name", [SMALL, "deeplabv3_mobilenet_v3_large"])
def test_published_weights_get_a_new_head_and_no_auxiliary_one(
    name: str, classes: int, published: list[nn.Module]
) -> None:
    model = torchvision_segmenter(name, options(classes=classes, pretrained=True)).eval()
    (source,) = published
    assert not [key for key in model.state_dict() if "aux" in key]
    source.eval()
    x = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        logits = model(x)
        assert logits.shape == (1, classes, 32, 32)
        if classes == 21:
            torch.testing.assert_close(logits, source(x)["out"])
    assert model.backbone is source.backbone


def test_published_weights_want_three_channels() -> None:
    with pytest.raises(UserError, match="for 3 channels, and these images have 1"):
        torchvision_segmenter(SMALL, options(1, pretrained=True))


def test_a_failing_download_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no route to host\nand more")

    monkeypatch.setattr(torchvision.models, "get_model", refuse)
    with pytest.raises(UserError, match=f"the published weights of '{SMALL}': no route to host$"):
        torchvision_segmenter(SMALL, options(pretrained=True))


# segmentation_models_pytorch


@pytest.mark.parametrize("name", ["unet:resnet18", "segformer:mit_b0", "upernet:resnet18"])
def test_smp_takes_any_size_and_number_of_channels(name: str) -> None:
    pytest.importorskip("segmentation_models_pytorch")
    model = smp_network(name, options(1)).eval()
    with torch.no_grad():
        assert model(torch.rand(1, 1, 33, 40)).shape == (1, 5, 33, 40)
        x = torch.rand(1, 1, 32, 64)
        torch.testing.assert_close(model(x), model.network(x))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("unet", "'smp:unet' names no encoder"),
        ("unnet:resnet18", "no architecture 'unnet': did you mean 'unet'"),
        ("unet:resnet81", "no encoder 'resnet81': did you mean 'resnet18'"),
        ("unet:tu-resnet81", "could not build 'smp:unet:tu-resnet81'"),
    ],
)
def test_smp_names_that_there_are_not(name: str, message: str) -> None:
    pytest.importorskip("segmentation_models_pytorch")
    with pytest.raises(UserError, match=message) as caught:
        smp_network(name, options())
    assert "\n" not in str(caught.value)


def test_an_absent_smp_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    with pytest.raises(UserError, match=r"pip install 'robustbench_gpm\[smp\]'"):
        smp_network("unet:resnet18", options())


def test_padding_goes_on_with_the_edge_and_is_cut_off() -> None:
    class Doubled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert x.shape[2:] == (8, 12)
            assert torch.equal(x[..., 5:, :9], x[..., 4:5, :9].expand(1, 2, 3, 9))
            assert torch.equal(x[..., 9:], x[..., 8:9].expand(1, 2, 8, 3))
            return 2 * x

    x = torch.rand(1, 2, 5, 9)
    assert torch.equal(Padded(Doubled(), 4)(x), 2 * x)


# the U-Net


def test_the_digits_segmenter_is_small() -> None:
    count = sum(p.numel() for p in digits_segmenter(options(1, 11)).parameters())
    widths = [(1, 16), (16, 16), (16, 32), (32, 32), (32, 64), (64, 64), (96, 32), (32, 32)]
    convolutions = [*widths, (48, 16), (16, 16)]
    assert count == sum(9 * i * o + 2 * o for i, o in convolutions) + 17 * 11
    assert count < 200_000


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (7, 8), (32, 32)])
def test_the_unet_takes_any_size(size: tuple[int, int]) -> None:
    assert UNet(1, 4)(torch.rand(2, 1, *size)).shape == (2, 4, *size)


def test_the_unet_moves_with_the_image() -> None:
    """By multiples of 4 pixels, away from the edges: nothing in it knows where a pixel is."""
    torch.manual_seed(1)
    model = UNet(1, 3).double().eval()
    x = torch.zeros(1, 1, 96, 96, dtype=torch.double)
    x[..., 40:48, 44:52] = torch.rand(8, 8, dtype=torch.double)
    logits = model(x)
    moved = model(x.roll((8, -4), (2, 3)))
    middle = (..., slice(34, 62), slice(34, 62))
    torch.testing.assert_close(moved[middle], logits.roll((8, -4), (2, 3))[middle])


@pytest.mark.parametrize("activation", [None, "softplus"])
@pytest.mark.parametrize("make", [digits_segmenter, SEGMENTERS[SMALL]], ids=["unet", "lraspp"])
def test_penalties_reach_every_weight(
    make: Callable[[ModelOptions], nn.Module], activation: str | None
) -> None:
    torch.manual_seed(2)
    model = make(options(1)).double().train()
    if activation:
        with_activation(model, activation, torch.zeros(1, 1, 24, 24, dtype=torch.double))
    x, y = torch.rand(2, 1, 24, 24, dtype=torch.double), torch.randint(0, 5, (2, 24, 24))
    Penalised((InputGradient(1.0),)).backward(model, x, y, pixel_cross_entropy)
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


# what is asked of a model from elsewhere


class Fixed(nn.Module):
    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def test_check_output_accepts_and_leaves_alone() -> None:
    model = digits_segmenter(options()).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    check_output(model, wide())
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (torch.zeros(1, 5), r"of shape \(1, 5, 24, 40\) for one image, and gave \(1, 5\)"),
        (torch.zeros(1, 5, 6, 10), r"gave \(1, 5, 6, 10\)"),
        ({"out": 1}, "gave a dict"),
        (ValueError("too small\nby far"), "cannot take images .*: too small$"),
    ],
)
def test_check_output_refuses_in_one_sentence(answer: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_output(Fixed(answer), wide())
