"""Edge regularisation (EdgeReg: Rodriguez-Munoz et al., ECCV 2024, arXiv 2409.20139)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from ..core import Loss, UserError
from ..fields import flag
from .attention import double_backward_attention
from .base import Around, Objective
from .edge_teacher import edge_map
from .penalised import Penalised
from .weights import Moment

TEMPERATURE = 0.5  # of the softmax that the class is drawn from
FIRST, GROWTH, LAST = 1.0, 0.09, 19.0  # the paper's weight: at first, what an epoch adds, at most
# Root mean squares below which there is no direction to speak of. A gradient may have any scale; an
# edge map that faint is rounding, for one grey level in one pixel of 224 x 224 makes 1e-5.
DEAD, FLAT = 1e-12, 1e-6


@dataclass(frozen=True)
class EdgeOptions(Around):
    """The flag of edge regularisation."""

    edge_lamb: float = flag(
        0.0,
        "edge regularisation: how much of the paper's weight, which grows from 1 to 19 over the "
        "first 200 epochs, input gradients that do not look like edges have; for classification",
        at_least=0,
    )

    @property
    def active(self) -> bool:
        return self.edge_lamb > 0

    @property
    def label(self) -> str:
        return f"edge{self.edge_lamb:g}"

    def around(self, inner: Objective) -> Objective:
        return EdgeRegularised(self.edge_lamb, inner)


@dataclass(frozen=True)
class EdgeRegularised:
    """`inner` plus lamb * a * mean_i MSE(g_i, E_i): input gradients that look like edges.

    g_i is the gradient of one logit with respect to the image, that of a class drawn from
    softmax(logits / 0.5); E_i the image's `edge_map`, the same for every channel. Each is divided
    by its root mean square, so that only directions are compared: the error lies between 0 and 4,
    and is 1 where one of the two is zero. a = min(1 + 0.09 epoch, 19), which `at` moves on.

    Two things differ from the authors' code. The root mean square is each sample's own, theirs the
    batch's, so that here nothing depends on who shares a batch and no sample outweighs another. And
    gradient and edges are those of images in [0,1]: dividing by the root mean square takes away
    whatever factor normalisation brings, if it is the same in all channels; where deviations
    differ between channels, by 2% for ImageNet's, those channels weigh differently by as much.

    An objective without penalties shares its forward pass. Any other has one of its own, to which
    the images go as they are given (`rs_sigma` moves the others alone), in the weights' own
    precision. It begins as the other did: batch norms take no second part of the batch into their
    statistics, and dropout drops the same, if the other pass draws at random for nothing else.
    """

    lamb: float
    inner: Objective
    epoch: float = field(default=math.inf, repr=False)

    def at(self, epoch: float) -> EdgeRegularised:
        """The same once `epoch` epochs (a fraction counts) are done; before, as at the end."""
        return replace(self, epoch=epoch, inner=self.inner.at(epoch))

    @property
    def weight(self) -> float:
        """What the mean squared error is multiplied by now."""
        return self.lamb * min(FIRST + GROWTH * self.epoch, LAST)

    def backward(self, model: nn.Module, x: Tensor, y: Tensor, loss: Loss) -> dict[str, Tensor]:
        """See `Objective.backward`; logs the mean squared error before its weight as `edge`."""
        if isinstance(self.inner, Penalised) and not self.inner.penalties:
            return self._in_one_pass(model, x, y, loss)
        moment = Moment.of(model, x.device)
        log = self.inner.backward(model, x, y, loss)
        numbers, x = _numbers(x), x.detach().requires_grad_()
        with moment.again(), double_backward_attention(model):
            edge = edge_errors(model(x), x, numbers).mean()
            _add_gradient(self.weight * edge, model)
        return {**log, "edge": edge.detach()}

    def _in_one_pass(self, model: nn.Module, x: Tensor, y: Tensor, loss: Loss) -> dict[str, Tensor]:
        x = x.detach().requires_grad_()
        recorder = _Recorder(model)
        with double_backward_attention(model):
            mean_loss = loss(recorder, x, y).mean()
            edge = edge_errors(recorder.outputs[0], x, _numbers(x)).mean()
            _add_gradient(mean_loss + self.weight * edge, model)
        return {"loss": mean_loss.detach(), "edge": edge.detach()}


def edge_errors(logits: Tensor, x: Tensor, numbers: Tensor) -> Tensor:
    """MSE(g_i, E_i) of each sample, shape (B,), part of a graph; x (B,C,H,W) is a leaf of it.

    `logits` (B,K) are the model's at x; `numbers` (B,) draw the classes, see `drawn_classes`.
    Raises UserError for what are no logits.
    """
    if logits.dim() != 2:
        raise UserError(
            "edge regularisation needs a model that gives logits (B, classes), and this one gave "
            f"{tuple(logits.shape)}: train without --edge_lamb"
        )
    chosen = logits.gather(1, drawn_classes(logits, numbers)[:, None])
    (gradient,) = torch.autograd.grad(chosen.sum(), x, create_graph=True)
    error = of_unit_size(gradient, DEAD) - of_unit_size(edge_map(x.detach()), FLAT)
    return error.square().flatten(1).mean(1)


@torch.no_grad()
def drawn_classes(logits: Tensor, numbers: Tensor) -> Tensor:
    """Classes (B,) by softmax(logits / 0.5), from `numbers` (B,) uniform in [0,1).

    The class up to which the probabilities first add up to more than the number.
    """
    cumulative = (logits.double() / TEMPERATURE).softmax(1).cumsum(1)
    return (cumulative <= numbers[:, None]).sum(1).clamp_max(logits.shape[1] - 1)


def _numbers(x: Tensor) -> Tensor:
    """One a sample, in order, by torch's global generator: two halves draw what a whole does."""
    return torch.rand(len(x), dtype=torch.double).to(x.device)


def of_unit_size(images: Tensor, floor: float) -> Tensor:
    """Each sample of `images` (B,C,H,W) divided by its own root mean square.

    One whose root mean square is at most `floor` becomes zero, and so does its derivative, which
    would otherwise be endless there.
    """
    square = images.square().mean((1, 2, 3), keepdim=True)
    alive = square > floor**2
    factor = torch.where(alive, square, 1.0).rsqrt()
    return images * torch.where(alive, factor, 0.0)


class _Recorder(nn.Module):
    """A model that keeps what it gave: a loss has the logits to itself.

    A loss that makes several passes, such as that of TRADES, begins with the images' own.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.outputs: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.model(x)
        self.outputs.append(output)
        return output


def _add_gradient(total: Tensor, model: nn.Module) -> None:
    """Add the gradient of `total` to the weights' alone: one left on x would be for nobody."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    total.backward(inputs=parameters)  # type: ignore[no-untyped-call]
