"""What the checks need of a model's outputs: how far two of them differ, and a gradient always."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..core import frozen

FLOAT_NOISE = 1e-4  # of the outputs' spread; the same pass twice differs by about 1e-6, if at all


class Connected(nn.Module):
    """`model` with a gradient in every case: zero where its outputs come without one.

    A model that computes outside autograd (a JPEG codec, `detach`) makes a gradient attack raise
    RuntimeError; behind this it meets zeros, as before any other flat loss. Outputs are unchanged.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, *labels: Tensor) -> Tensor | dict[str, Tensor]:
        """What the model gives for images x (B,C,H,W): outputs, or losses with labels."""
        outputs: Tensor | dict[str, Tensor] = self.model(x, *labels)
        if not (torch.is_grad_enabled() and x.requires_grad):
            return outputs
        nothing = 0 * x.flatten(1).sum(1)

        def joined(output: Tensor) -> Tensor:
            return output + nothing.to(output.dtype).view(-1, *[1] * (output.dim() - 1))

        if isinstance(outputs, dict):
            return {name: joined(output) for name, output in outputs.items()}
        return joined(outputs)


def connected(
    model: nn.Module, sample: Tensor, outputs: Callable[[nn.Module, Tensor], Tensor] | None = None
) -> nn.Module:
    """`model` where a gradient reaches its images, tried on `sample` (B,C,H,W); else `Connected`.

    `outputs` says what to look at, where that is not `model(sample)`. One forward and backward
    pass; a model that has its gradient costs nothing more afterwards.
    """
    with random_state_kept(sample.device), frozen(model), torch.enable_grad():
        x = sample.detach().clone().requires_grad_()
        found: Tensor = model(x) if outputs is None else outputs(model, x)
        reached = found.requires_grad
        if reached:
            (gradient,) = torch.autograd.grad(found.sum(), x, allow_unused=True)
            reached = gradient is not None
    return model if reached else Connected(model)


def disagreement(one: Tensor, other: Tensor) -> float:
    """The largest difference of two outputs (B,K,...), as a share of the spread of the first."""
    if one.numel() == 0:
        return 0.0
    a, b = one.double().nan_to_num(), other.double().nan_to_num()
    spread = (a.amax() - a.amin()).clamp_min(1e-30)
    return float((a - b).abs().amax() / spread)


@contextmanager
def random_state_kept(device: torch.device) -> Iterator[None]:
    """Torch's random numbers afterwards as before, whatever a randomised model draws.

    Within, they begin anew at every call, so that the checks of such a model are the same in each
    shard and in a run that goes on.
    """
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        torch.default_generator.manual_seed(0)
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(0)
        yield
