"""Attention differentiated twice: the penalty's gradient, and who is told of it."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from robustbench_gpm.core import UserError
from robustbench_gpm.losses import cross_entropy
from robustbench_gpm.models import ModelOptions, build_model
from robustbench_gpm.objectives import InputGradient, Objective, Penalised
from robustbench_gpm.objectives.attention import SAID, double_backward_attention
from robustbench_gpm.objectives.edges import EdgeRegularised


class Attending(nn.Module):
    """Rows of an image (B,1,6,8) as tokens: one layer of attention, then logits (B,3)."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind = kind
        self.project = nn.Linear(8, 24)
        self.whole = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(48, 3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.squeeze(1)
        if self.kind == "module":
            mixed, _ = self.whole(tokens, tokens, tokens, need_weights=False)
        elif self.kind == "weights":
            mixed, _ = self.whole(tokens, tokens, tokens)
        else:
            q, k, v = self.project(tokens).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
            mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        logits: Tensor = self.head(mixed.flatten(1))
        return logits


class Stubborn(Attending):
    """Chooses the kernel by itself."""

    def forward(self, x: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return super().forward(x)


def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.rand(4, 1, 6, 8, dtype=torch.double), torch.randint(0, 3, (4,))


def run(objective: Objective, model: nn.Module) -> dict[str, Tensor]:
    torch.manual_seed(2)
    with double_backward_attention(model):
        return objective.backward(model, *batch(), cross_entropy)


@pytest.mark.parametrize("kind", ["function", "module"])
@pytest.mark.parametrize(
    ("objective", "tag", "weight"),
    [(Penalised((InputGradient(1.0, "l2", 1.0),)), "igr", 1.0),
     (EdgeRegularised(1.0, Penalised(), epoch=50), "edge", 5.5)],
)  # fmt: skip
def test_the_gradient_is_the_finite_difference_of_the_value(
    objective: Objective, tag: str, weight: float, kind: str
) -> None:
    model, step = Attending(kind), 1e-5
    run(objective, model)
    flat = nn.utils.parameters_to_vector(model.parameters()).detach()
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    direction, values = torch.randn_like(flat), []
    for sign in (1, -1):
        other = copy.deepcopy(model)
        nn.utils.vector_to_parameters(flat + sign * step * direction, other.parameters())
        log = run(objective, other)
        values.append(float(log["loss"] + weight * log[tag]))
    expected = (values[0] - values[1]) / (2 * step)
    along = torch.cat([g.flatten() for g in found]) @ direction
    assert float(along) == pytest.approx(expected, rel=1e-6)


def test_the_kernels_allowed_before_are_allowed_again() -> None:
    flags = (torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.mem_efficient_sdp_enabled)
    before = [flag() for flag in flags]
    with pytest.raises(ValueError, match="mine"), double_backward_attention(nn.ReLU()):
        assert [flag() for flag in flags] == [False, False]
        assert torch.backends.cuda.math_sdp_enabled()
        raise ValueError("mine")
    assert [flag() for flag in flags] == before


@pytest.mark.parametrize(
    ("kind", "said"), [("function", [SAID]), ("module", [SAID]), ("weights", [])]
)
def test_it_is_said_once_where_attention_runs(
    kind: str, said: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    model = Attending(kind)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            run(Penalised((InputGradient(1.0),)), model)
    assert caplog.messages == said


def test_a_model_without_attention_is_told_nothing(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 3)).double()
    with caplog.at_level(logging.WARNING):
        run(Penalised((InputGradient(1.0),)), model)
    assert not caplog.messages


def test_a_model_that_chooses_its_kernel_is_refused_in_a_sentence() -> None:
    with pytest.raises(UserError, match="chooses an attention kernel that has no second deriv"):
        run(Penalised((InputGradient(1.0),)), Stubborn("function"))


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="mine"), double_backward_attention(nn.ReLU()):
        raise RuntimeError("mine")


def test_a_vision_transformer_of_timm_is_trained_with_penalties() -> None:
    pytest.importorskip("timm")
    options = ModelOptions(3, 3, 32, (0.5,) * 3, (0.5,) * 3)
    model = build_model("timm:test_vit", options)
    x, y = torch.rand(2, 3, 32, 32), torch.tensor([0, 2])
    with double_backward_attention(model):
        Penalised((InputGradient(1.0),)).backward(model, x, y, cross_entropy)
    grads = [p.grad for name, p in model.named_parameters() if "attn.qkv.weight" in name]
    assert grads
    assert all(g is not None and g.isfinite().all() and g.any() for g in grads)
