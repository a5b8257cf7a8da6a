"""Networks for clips: frames in their order, grey clips, lengths and sizes, second derivatives."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torchvision
from torch import Tensor, nn

from robustbench_gpm.core import UserError
from robustbench_gpm.losses import cross_entropy
from robustbench_gpm.models.options import ModelOptions
from robustbench_gpm.models.video import Clips, clip_cnn, video_network
from robustbench_gpm.objectives import GPM, Penalised


def options(frames: int, channels: int, size: int, classes: int = 5, **more) -> ModelOptions:
    count = frames * channels
    return ModelOptions(classes, count, size, (0.0,) * count, (1.0,) * count, frames=frames, **more)


class Seen(nn.Module):
    """Hands on what it is given."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_channels_are_frame_after_frame():
    clips = torch.rand(2, 4, 3, 5, 6)  # (B,T,C,H,W)
    seen = Clips(Seen(), 4)(clips.flatten(1, 2))
    assert seen.shape == (2, 3, 4, 5, 6)
    assert torch.equal(seen, clips.transpose(1, 2))


@pytest.mark.parametrize(
    ("name", "frames", "size"),
    [("r3d_18", 3, 16), ("r2plus1d_18", 2, 16), ("mc3_18", 1, 16), ("swin3d_t", 2, 32)],
)
@torch.no_grad()
def test_a_grey_clip_is_three_equal_channels(name, frames, size):
    torch.manual_seed(0)
    coloured = video_network(name, options(frames, 3, size)).eval()
    torch.manual_seed(0)
    grey = video_network(name, options(frames, 1, size)).eval()
    x = torch.rand(2, frames, size, size)
    logits = grey(x)
    assert logits.shape == (2, 5)
    torch.testing.assert_close(
        logits, coloured(x.repeat_interleave(3, dim=1)), atol=1e-4, rtol=1e-4
    )


@torch.no_grad()
def test_mvit_takes_other_clips_than_it_was_made_for():
    torch.manual_seed(0)
    net = video_network("mvit_v2_s", options(5, 1, 36)).eval()
    x = torch.rand(2, 5, 36, 36)
    logits = net(x)
    assert logits.shape == (2, 5)
    torch.testing.assert_close(net(x[1:]), logits[1:], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(net(x.flip(1)), logits, atol=1e-5)  # it sees the order of frames


def test_pretrained_weights_are_kept_but_for_the_head(monkeypatch):
    source = torchvision.models.video.mc3_18(weights=None)
    asked = []

    def download(url: str, **_: object) -> dict[str, Tensor]:
        asked.append(url)
        return source.state_dict()

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    net = video_network("mc3_18", options(2, 1, 16, pretrained=True)).network
    assert len(asked) == 1
    assert "mc3_18" in asked[0]
    kept = dict(net.named_parameters())
    for name, parameter in source.named_parameters():
        if name == "stem.0.weight":
            torch.testing.assert_close(kept[name], parameter.sum(1, keepdim=True))
        elif not name.startswith("fc"):
            assert torch.equal(kept[name], parameter)
    assert net.fc.out_features == 5

    def fail(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
    with pytest.raises(UserError, match="published weights of 'mc3_18': no route"):
        video_network("mc3_18", options(2, 1, 16, pretrained=True))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("r3d_18", (4, 3, 15), "at least 1 frames of 16 pixels, and these have 4 of 15"),
        ("swin3d_t", (1, 3, 32), "at least 2 frames of 32 pixels, and these have 1 of 32"),
        ("mvit_v2_s", (4, 3, 24), "at least 2 frames of 32 pixels"),
        ("mc3_18", (2, 2, 16), "1 or 3 channels, and these have 2"),
        ("r3d_34", (2, 3, 16), "unknown video network 'r3d_34': did you mean 'r3d_18'"),
    ],
)
def test_clips_a_network_cannot_take(name, shape, message):
    with pytest.raises(UserError, match=message):
        video_network(name, options(*shape))


def test_the_small_network():
    net = clip_cnn(options(6, 1, 20, classes=8))
    assert sum(p.numel() for p in net.parameters()) < 150_000
    net.eval()
    x = torch.rand(3, 6, 20, 20)
    logits = net(x)
    assert logits.shape == (3, 8)
    # Moving it all round by what the strides divide changes no average: the network is blind to
    # where, but for the edge; and it does see in which order the frames come.
    inner = torch.zeros(1, 6, 40, 40)
    inner[..., 16:24, 16:24] = torch.rand(1, 6, 8, 8)
    blank = clip_cnn(options(6, 1, 40)).eval()
    torch.testing.assert_close(blank(inner.roll(4, 3)), blank(inner), atol=1e-6, rtol=1e-4)
    assert not torch.allclose(blank(inner.flip(1)), blank(inner), atol=1e-6)
    assert clip_cnn(options(2, 3, 8))(torch.rand(2, 6, 8, 8)).shape == (2, 5)
    with pytest.raises(UserError, match="at least 8 pixels, and these have 7"):
        clip_cnn(options(2, 1, 7))
    with pytest.raises(UserError, match="cannot part 6 channels into 4 frames"):
        clip_cnn(replace(options(6, 1, 20), frames=4))


@pytest.mark.parametrize("name", ["clip_cnn", "r2plus1d_18", "swin3d_t"])
def test_penalties_on_input_gradients_reach_the_weights(name):
    torch.manual_seed(0)
    size = 32 if name == "swin3d_t" else 16
    asked = options(2, 1, size, classes=3)
    net = clip_cnn(asked) if name == "clip_cnn" else video_network(name, asked)
    x, y = torch.rand(2, 2, size, size), torch.tensor([0, 2])
    gradients = []
    for penalties in ((), (GPM(1e4),)):
        net.eval().zero_grad()
        Penalised(penalties).backward(net, x, y, cross_entropy)
        gradients.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    assert all(g.isfinite().all() for g in gradients)
    assert (gradients[1] - gradients[0]).norm() > 0.01 * gradients[0].norm()
