"""Before any attack: what is wrong with how the model, its images and its outputs fit together."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..core import frozen
from ..datasets import Split
from ..models import Normalised
from ..tasks import Classification
from ..tasks.base import Evidence
from .flags import Flag, raised
from .outputs import FLOAT_NOISE, disagreement, random_state_kept
from .views import ClassView, View

SAMPLED = 1000  # images for what needs further passes; 1% of them are ten
COMPARED = 64  # images whose outputs are compared in several compositions of the batch
COMPOSED = 4  # images a batch in the other composition

RANGE = 0.1  # of [0,1]: images scaled by 1/255 twice span .004, the dimmest of cameras' span .2
BATCH_NOISE = 1e-2  # of the spread; TF32 kernels chosen by batch size differ by about 1e-3
RISE = 0.1  # of the images; an honest network loses by a change of its input's scale
HALF = 0.01  # of the predictions, the loss of accuracy that nobody would notice
PROBABILITIES = 0.99  # of the rows: a row of logits may sum to one by chance, all of them cannot


@dataclass(frozen=True)
class Bench:
    """Where the checks run: a model on `device`, its images, and the batches they come in."""

    model: nn.Module
    split: Split
    view: View
    device: torch.device
    batch_size: int

    def batches(self, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and labels of these rows, batch by batch, on the device."""
        for part in torch.split(rows, self.batch_size):
            x, y = self.split.batch(part)
            yield x.to(self.device), y.to(self.device)

    def first(self, count: int) -> tuple[Tensor, Tensor]:
        """The first images, and their labels."""
        x, y = self.split.batch(slice(0, min(count, self.batch_size)))
        return x.to(self.device), y.to(self.device)

    def outputs(self, x: Tensor, y: Tensor) -> Tensor:
        """What the model gives for images with these labels."""
        return self.view.outputs(self.model, x, y)

    def sampled(self) -> Tensor:
        """Rows spread evenly over the split, whatever order its classes come in."""
        n = len(self.split)
        return torch.linspace(0, n - 1, min(n, SAMPLED)).round().long()


@torch.no_grad()
def preflight(
    model: nn.Module, split: Split, view: View, device: torch.device, batch_size: int
) -> list[Flag]:
    """The flags of a model, already on `device`, on the images of `split`; forward passes only.

    The whole split is passed through once, up to a thousand of its images about four times more.
    The model is left as it was, and so are torch's random numbers.
    """
    if len(split) == 0:
        return []
    bench = Bench(model, split, view, device, batch_size)
    with random_state_kept(device):
        flags = _images(split) + _training_mode(bench)
        with frozen(model):
            flags += _outputs(bench)
            unsteady = _steadiness(bench)
            flags += unsteady + _normalisation(bench)
            if isinstance(view, ClassView) and not unsteady:  # else they change in any precision
                flags += raised("half_precision_drift", _drift(bench, view.task), HALF)
    return flags


@torch.no_grad()
def half_precision_drift(
    model: nn.Module, split: Split, task: Classification, device: torch.device, batch_size: int
) -> float:
    """The share of predictions that change in bfloat16, in [0,1]; 1 where the model can't run so.

    Attacks may search in half precision only while this stays below .01.
    """
    with random_state_kept(device), frozen(model):
        return _drift(Bench(model, split, ClassView(task), device, batch_size), task)


def _images(split: Split) -> list[Flag]:
    spans = []
    for part in torch.split(split.images, 1024):
        flat = part.flatten(1)
        spans.append(flat.amax(1).float() - flat.amin(1).float())
    span = float(torch.cat(spans).median()) / 255
    # A flag goes up above its threshold: here it is the unused part of the range that counts.
    return raised("input_range", 1 - span, 1 - RANGE)


def _training_mode(bench: Bench) -> list[Flag]:
    """Whether the mode the model came in changes its outputs; a copy is asked to find out."""
    model = bench.model
    if not any(module.training for module in model.modules()):
        return []
    x, y = bench.first(COMPARED)
    try:
        trained = bench.view.outputs(copy.deepcopy(model), x, y)
    except Exception:  # what can't be copied, or can't be run on one image
        return raised("training_mode", 1.0, FLOAT_NOISE)
    with frozen(model):
        again, evaluated = bench.outputs(x, y), bench.outputs(x, y)
    if disagreement(evaluated, again) > FLOAT_NOISE:
        return []  # another flag tells that outputs are random in either mode
    return raised("training_mode", disagreement(evaluated, trained), FLOAT_NOISE)


def _outputs(bench: Bench) -> list[Flag]:
    """What the outputs on all clean images look like."""
    broken = probabilities = outputs = 0
    for x, y in bench.batches(torch.arange(len(bench.split))):
        logits = bench.outputs(x, y).double()
        outputs = logits.shape[1]
        broken += int((~logits.isfinite()).flatten(1).any(1).sum())
        shares = (logits >= 0).all(1) & (logits <= 1).all(1)
        if bench.view.exclusive:
            shares &= (logits.sum(1) - 1).abs() < 1e-4
        probabilities += int(shares.view(len(x), -1).all(1).sum())
    n, classes = len(bench.split), len(bench.split.classes)
    found = raised("non_finite_logits", broken / n, 0.0)
    if not bench.view.logits:
        return found
    found += raised("softmax_outputs", probabilities / n, PROBABILITIES)
    if outputs != classes:
        found += [Flag("classes", outputs, classes, raised("classes", 1, 0)[0].meaning)]
    return found


def _steadiness(bench: Bench) -> list[Flag]:
    """Whether an image's outputs stay the same: in a second pass, and in other company."""
    x, y = bench.first(COMPARED)
    outputs = bench.outputs(x, y)
    found = raised("randomised_outputs", disagreement(outputs, bench.outputs(x, y)), FLOAT_NOISE)
    if found:
        return found
    order = torch.arange(len(x), device=x.device).flip(0)
    apart = torch.cat([bench.outputs(x[part], y[part]) for part in torch.split(order, COMPOSED)])
    return raised("batch_dependent", disagreement(outputs[order], apart), BATCH_NOISE)


def _normalisation(bench: Bench) -> list[Flag]:
    """Whether the model does better on images whose normalisation was undone, or done, before."""
    rows, model = bench.sampled(), bench.model
    pixels = bench.split.images[rows].float().div(255).transpose(0, 1).flatten(1)
    shape = (1, -1, 1, 1)
    mean = pixels.mean(1).view(shape).to(bench.device)
    std = pixels.std(1).clamp_min(1e-3).view(shape).to(bench.device)
    if isinstance(model, Normalised):
        undone = _rise(bench, rows, model.std, model.mean, 0.0 if _twice(model) else RISE)
    else:
        undone = _rise(bench, rows, std, mean, RISE)
    found = raised("normalised_twice", *undone)
    return found or raised("not_normalised", *_rise(bench, rows, 1 / std, -mean / std, RISE))


def _twice(model: Normalised) -> bool:
    """Whether the network inside begins, by its own word, with another normalisation."""
    for module in model.network.modules():  # parents first, and in the order they were added
        if isinstance(module, Normalised) or "normali" in type(module).__name__.lower():
            return True
        if not any(True for _ in module.children()):
            return False
    return False


def _rise(
    bench: Bench, rows: Tensor, scale: Tensor, shift: Tensor, least: float
) -> tuple[float, float]:
    """How much accuracy rises on scale * x + shift, and what the rise must exceed.

    That is `least`, and three standard errors of the difference of two paired shares: the root
    of the number of images that change sides, over the number of images. A score that is surer but
    no better is no rise: where the task has a metric of its own, that must rise as well.
    """
    gained = lost = n = 0.0
    told: tuple[list[Evidence], list[Evidence]] = [], []
    for x, y in bench.batches(rows):
        right, clean = bench.view.right(bench.model, x, y)
        other, changed = bench.view.right(bench.model, scale * x + shift, y)
        change = other - right
        gained += float(change.clamp_min(0).sum())
        lost += float(change.clamp_max(0).abs().sum())
        n += len(x)
        told[0].extend(clean)
        told[1].extend(changed)
    rise, least = (gained - lost) / n, max(least, 3 * (gained + lost) ** 0.5 / n)
    if rise > least:
        before, after = (bench.view.metric_of(each) for each in told)
        if before is not None and after is not None:
            rise = min(rise, after - before)
    return rise, least


def _drift(bench: Bench, task: Classification) -> float:
    changed = total = 0
    try:
        half = copy.deepcopy(bench.model).to(torch.bfloat16)
        for x, _ in bench.batches(bench.sampled()):
            full = task.predict(bench.model, x)[0]
            changed += int((task.predict(half, x.bfloat16())[0] != full).sum())
            total += full.numel()
    except Exception:  # endlessly many reasons not to run in bfloat16
        return 1.0
    return changed / total
