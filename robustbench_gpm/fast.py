"""A faster frozen copy of a model, for the search of attacks and never for their verdicts."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.utils.flop_counter import FlopCounterMode

# How far the copy may stray: its logits, of their spread; its input gradient, of its length. A
# gradient may stray further, since rounding can push a ReLU to the other side of its kink.
LOGITS_MAY_DIFFER = 1e-3
GRADIENT_MAY_DIFFER = 0.1
# The same in bfloat16, which only speeds the search up: a sample that it takes for fooled, and that
# is not, is searched again in float32.
COARSE_LOGITS_MAY_DIFFER = 0.05
COARSE_GRADIENT_MAY_DIFFER = 0.4

WORTH_HALVING = 8e6  # operations an image; below, converting costs what computing saves

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def copies(model: nn.Module, sample: Tensor) -> tuple[list[nn.Module], dict[str, object]]:
    """Copies of `model` to search on, the fastest first, and their description.

    The last is `accelerated`'s; before it, where the machine computes in bfloat16 by itself, the
    same in mixed precision. That one is used only if on `sample` (B,C,H,W) its logits differ by at
    most 5% of their spread, and its input gradient by at most 40% of its length.
    """
    precise, description = accelerated(model, sample)
    if not _computes_bfloat16(sample.device) or _operations(precise, sample) < WORTH_HALVING:
        return [precise], {**description, "bfloat16": False}
    coarse = MixedPrecision(precise)
    try:
        difference = _difference(_measure(coarse, sample), _measure(precise, sample))
    except Exception as error:  # an operation without a bfloat16 form
        return [precise], {**description, "bfloat16": False, "why_float32": _short(error)}
    near = difference.logits <= COARSE_LOGITS_MAY_DIFFER * difference.spread
    if not (near and difference.gradient <= COARSE_GRADIENT_MAY_DIFFER):
        return [precise], {**description, "bfloat16": False, "why_float32": difference.told}
    measured = {
        "bfloat16": True,
        "bfloat16_logit_difference": difference.logits,
        "bfloat16_gradient_difference": difference.gradient,
    }
    return [coarse, precise], {**description, **measured}


class MixedPrecision(nn.Module):
    """A model whose convolutions and matrix products compute in bfloat16; logits are float32."""

    coarse = True  # too coarse to find a decision boundary by

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B,K) of images (B,C,H,W)."""
        with torch.autocast(x.device.type, torch.bfloat16):
            logits: Tensor = self.model(x)
        return logits.to(x.dtype)


def _operations(model: nn.Module, sample: Tensor) -> float:
    """Floating-point operations of one image's forward pass; endless where uncountable."""
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(sample[:1])
    except Exception:  # an operation that refuses to be watched
        return float("inf")
    return float(counter.get_total_flops())


def _computes_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    supported: bool = torch.cpu._is_avx512_bf16_supported()
    return supported


def accelerated(model: nn.Module, sample: Tensor) -> tuple[nn.Module, dict[str, object]]:
    """A copy of `model` in evaluation mode, without weight gradients, that runs faster.

    Batch norms are folded into the convolutions and linear layers before them, where torch.fx can
    trace the model, and weights are laid out with channels last. `sample` are images (B,C,H,W) in
    [0,1] on which every such copy is compared with the model: one whose logits differ by more than
    1e-3 of their spread, or its input gradient by more than a tenth of its length, is not used.

    Returns the copy and its description: `fused` and `channels_last` (bool), what was measured on
    `sample`, that is `largest_logit_difference` (in logits) and `gradient_difference` (of the
    gradient's length), and `why` where either was not to be had. The model stays as it is; only one
    that cannot be copied is itself returned, which `why` then says.
    """
    try:
        plain = _frozen_copy(model)
    except Exception as error:  # tensors that are no parameters may refuse to be copied
        return model, _description(False, False, Difference(), f"cannot be copied: {_short(error)}")
    try:
        reference = _measure(plain, sample)
    except Exception as error:  # outputs that are no tensor, or not differentiable
        return plain, _description(False, False, Difference(), f"not compared: {_short(error)}")

    why = ""
    for fused, channels_last in ((True, True), (True, False), (False, True)):
        try:
            candidate = _folded(plain) if fused else copy.deepcopy(plain)
            if channels_last:
                candidate = candidate.to(memory_format=torch.channels_last)
            difference = _difference(_measure(candidate, sample), reference)
        except Exception as error:  # models can be written in endlessly many ways
            why = why or _short(error)
            continue
        if difference.small:
            return candidate, _description(fused, channels_last, difference, why)
        why = why or difference.told
    return plain, _description(False, False, Difference(), why)


@dataclass(frozen=True)
class Difference:
    """What a copy's logits and input gradient differ by from the model's."""

    logits: float = 0.0
    spread: float = 1.0
    gradient: float = 0.0

    @property
    def small(self) -> bool:
        """Whether attacks may search on the copy; never where either side is NaN."""
        near = self.logits <= LOGITS_MAY_DIFFER * self.spread
        return near and self.gradient <= GRADIENT_MAY_DIFFER

    @property
    def told(self) -> str:
        """The difference in words."""
        return (
            f"the copy differs by {self.logits:.2g} in logits that spread over {self.spread:.2g}, "
            f"and by {self.gradient:.2g} of its length in the input gradient"
        )


def _description(
    fused: bool, channels_last: bool, difference: Difference, why: str
) -> dict[str, object]:
    measured: dict[str, object] = {
        "fused": fused,
        "channels_last": channels_last,
        "largest_logit_difference": difference.logits,
        "gradient_difference": difference.gradient,
    }
    return measured | {"why": why} if why else measured


def _short(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _frozen_copy(model: nn.Module) -> nn.Module:
    duplicate = copy.deepcopy(model).eval()
    for parameter in duplicate.parameters():
        parameter.requires_grad_(False)
        parameter.grad = None
    return duplicate


def _folded(model: nn.Module) -> nn.Module:
    """A traced copy with the batch norms folded. Raises ValueError where there are none to fold."""
    if any(getattr(module, hooks) for module in model.modules() for hooks in HOOKS):
        raise ValueError("the model has hooks, which tracing would lose")
    folded = fuse(model).eval()
    if _norms(folded) == _norms(model):
        raise ValueError("no batch norm follows a convolution or linear layer")
    return folded


def _norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


def _measure(model: nn.Module, sample: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, and the input gradient of a sum of them that no confidence can flatten."""
    with torch.enable_grad():
        x = sample.detach().clone().requires_grad_()
        logits = model(x)
        weights = torch.linspace(-1, 1, logits.shape[1], dtype=logits.dtype, device=logits.device)
        total = (logits.movedim(1, -1) * weights).sum()
        (gradient,) = torch.autograd.grad(total, x)
    return logits.detach(), gradient


def _difference(found: tuple[Tensor, Tensor], reference: tuple[Tensor, Tensor]) -> Difference:
    (logits, gradient), (true_logits, true_gradient) = found, reference
    length = true_gradient.norm().clamp_min(1e-30)
    return Difference(
        logits=float((logits - true_logits).abs().max()),
        spread=float(true_logits.max() - true_logits.min()),
        gradient=float((gradient - true_gradient).norm() / length),
    )
