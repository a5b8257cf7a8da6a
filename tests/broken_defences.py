"""Defences that are known to be broken, around an honest network: what a check must not miss."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

Bend = Callable[[Tensor, Tensor], Tensor]  # (images, gradient) -> another gradient


class LoudLogits(nn.Module):
    """Logits times 1000: the softmax saturates, and float32 has no gradient left."""

    def __init__(self, network: nn.Module, scale: float = 1000.0) -> None:
        super().__init__()
        self.network, self.scale = network, scale

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.network(x)


class Detached(nn.Module):
    """Preprocessing that autograd does not see."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.detach().clamp(0, 1))


class Quantised(nn.Module):
    """Pixels rounded to a few levels (Buckman et al. 2018; Xu et al. 2018): flat steps."""

    def __init__(self, network: nn.Module, levels: int = 16) -> None:
        super().__init__()
        self.network, self.levels = network, levels

    def forward(self, x: Tensor) -> Tensor:
        return self.network((x * (self.levels - 1)).round() / (self.levels - 1))


class Noisy(nn.Module):
    """Noise on the input, another at every pass."""

    def __init__(self, network: nn.Module, sigma: float = 0.2) -> None:
        super().__init__()
        self.network, self.sigma = network, sigma

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x + self.sigma * torch.randn_like(x))


class KWinners(nn.Module):
    """The largest share of a layer's values, all others zero (Xiao et al. 2020)."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        least = flat.topk(max(1, round(self.share * flat.shape[1])), dim=1).values[:, -1:]
        return (flat * (flat >= least)).view_as(x)


def with_winners(
    network: nn.Module, x: Tensor, y: Tensor, share: float = 0.05, epochs: int = 3
) -> nn.Module:
    """A copy of the network with every ReLU replaced, trained until it is right again."""
    changed = copy.deepcopy(network).train()
    for module in list(changed.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, KWinners(share))
    optimiser = torch.optim.Adam(changed.parameters(), 1e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(64):
            optimiser.zero_grad()
            nn.functional.cross_entropy(changed(x[rows]), y[rows]).backward()
            optimiser.step()
    return changed.eval()


class _Bend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bend: Bend) -> Tensor:
        ctx.save_for_backward(x)
        ctx.bend = bend
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.bend(ctx.saved_tensors[0], gradient), None


class Bent(nn.Module):
    """A first layer that changes nothing on the way in, and the gradient on the way back."""

    def __init__(self, network: nn.Module, bend: Bend) -> None:
        super().__init__()
        self.network, self.bend = network, bend

    def forward(self, x: Tensor) -> Tensor:
        return self.network(_Bend.apply(x, self.bend))


def backwards(_: Tensor, gradient: Tensor) -> Tensor:
    """The loss falls along the gradient."""
    return -gradient


def true_at_bytes(x: Tensor, gradient: Tensor) -> Tensor:
    """The loss rises along the gradient only where every pixel is a whole byte, as when clean."""
    off = (x * 255 - (x * 255).round()).abs().flatten(1).amax(1) > 1e-3
    return torch.where(off.view(-1, 1, 1, 1), -gradient, gradient)


def drowned(x: Tensor, gradient: Tensor) -> Tensor:
    """Under a ripple, another at every image, in which the gradient shows over many steps only."""
    ripple = (1e5 * (x + x.flatten(1).sum(1).view(-1, 1, 1, 1))).sin()
    size = gradient.abs().flatten(1).mean(1).view(-1, 1, 1, 1)
    return gradient + 4 * size * ripple


class JPEG(nn.Module):
    """Images through a real JPEG codec, outside autograd (Guo et al. 2018)."""

    def __init__(self, network: nn.Module, quality: int = 80) -> None:
        super().__init__()
        self.network, self.quality = network, quality

    def forward(self, x: Tensor) -> Tensor:
        grey = (x.detach().cpu()[:, 0] * 255).round().clamp(0, 255).to(torch.uint8).numpy()
        return self.network(torch.stack([self._through(one) for one in grey])[:, None].to(x))

    def _through(self, image: np.ndarray) -> Tensor:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=self.quality)
        return torch.from_numpy(np.array(Image.open(file))).float() / 255
