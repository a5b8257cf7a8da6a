"""Attacks of foolbox (https://github.com/bethgelab/foolbox) as ours, and its models as ours."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any, ClassVar

import eagerpy as ep
import foolbox
import numpy as np
import torch
from foolbox.attacks import base
from torch import Tensor, nn

from ..core import Loss, Samples, UserError
from .base import Attack
from .foreign import Options, attacked, built, check_norm, only_fooling, pick
from .geometry import shrink
from .minimum_norm import MinimumNormAttack
from .threats import THREATS, Threat

LIBRARY = "foolbox"
INITIAL_DIRECTIONS, INITIAL_STEPS = 1000, 50  # of the search for a first fooling image

# The norm of classes that leave it open, or state another than the one they keep small.
_NORMS = {
    "BinarySearchContrastReductionAttack": "l2",
    "GaussianBlurAttack": "l2",
    "HopSkipJumpAttack": "l2",
    "InversionAttack": "l2",
    "LinearSearchBlendedUniformNoiseAttack": "l2",
    "LinearSearchContrastReductionAttack": "l2",
    "PointwiseAttack": "l0",
    "SaltAndPepperNoiseAttack": "l2",
}
# These begin at an image that already fools.
FROM_FOOLING = ("BoundaryAttack", "HopSkipJumpAttack", "PointwiseAttack")
_FROM_NOISE = FROM_FOOLING[:2]
REFUSED = {
    "Attack": "it is the base of the others",
    "BinarizationRefinementAttack": "it refines another attack's images, and needs them",
    "DatasetAttack": "it must be fed with a data set first",
    "GenAttack": "it is targeted only",
    "SpatialAttack": "it rotates and shifts, which no norm measures",
    "VirtualAdversarialAttack": "it needs an argument, how many steps to make",
}
if importlib.util.find_spec("numba") is None:
    _BETHGE = [f"{norm}BrendelBethgeAttack" for norm in ("L0", "L1", "L2", "Linfinity")]
    REFUSED.update(dict.fromkeys(_BETHGE, "it needs numba, which is not installed"))


def _classes() -> dict[str, type]:
    """Every attack class of the library by each of its names."""
    members = vars(foolbox.attacks).items()
    return {n: c for n, c in members if isinstance(c, type) and issubclass(c, base.Attack)}


CLASSES = _classes()
SERVED = [name for name in CLASSES if name not in REFUSED]


def norms_of(name: str) -> tuple[str, ...]:
    """The norms that a class serves, its own default first."""
    if name == "HopSkipJumpAttack":
        return ("l2", "linf")
    if name in _NORMS:
        return (_NORMS[name],)
    attack = CLASSES[name]()
    return (str(attack.distance).split()[0].lower(),)


def takes_budget(name: str) -> bool:
    """Whether a class searches inside a budget, rather than for the nearest image."""
    return issubclass(CLASSES[name], base.FixedEpsilonAttack)


@dataclass(frozen=True)
class FoolboxBudget(Attack):
    """An attack of foolbox that takes a budget; see `by_foolbox`."""

    batch_dependent: ClassVar[bool] = True

    name: str = "LinfPGD"
    norm: str = "linf"
    options: Options = ()

    def __post_init__(self) -> None:
        """Refuse what the library does not have."""
        super().__post_init__()
        pick(LIBRARY, self.name, filter(takes_budget, SERVED), REFUSED)
        check_norm(f"{LIBRARY}:{self.name}", self.norm, norms_of(self.name))

    @property
    def threat(self) -> Threat:
        return THREATS[self.norm]

    def perturb(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        budget: float,
        loss: Loss,  # noqa: ARG002
        samples: Samples,
    ) -> Tensor:
        if budget == 0:
            return x.clone()

        def run(model: nn.Module, x: Tensor, y: Tensor, *_: int) -> Tensor:
            attack = _made(self.name, self.options)
            images: Tensor = attack.run(*_given(model, x, y), epsilon=budget).raw
            return images

        found = attacked(f"{LIBRARY}:{self.name}", run, model, x, y, samples)
        return (x + shrink(found - x, budget, self.norm)).clamp(0, 1)


@dataclass(frozen=True)
class FoolboxNearest(MinimumNormAttack):
    """An attack of foolbox that looks for the nearest fooling image; see `by_foolbox`."""

    batch_dependent: ClassVar[bool] = True

    name: str = "L2DeepFoolAttack"
    options: Options = ()

    def __post_init__(self) -> None:
        """Refuse what the library does not have."""
        super().__post_init__()
        nearest = [name for name in SERVED if not takes_budget(name)]
        pick(LIBRARY, self.name, nearest, REFUSED)
        check_norm(f"{LIBRARY}:{self.name}", self.norm, norms_of(self.name))

    def search(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        budget: float,  # noqa: ARG002
        loss: Loss,  # noqa: ARG002
        samples: Samples,
    ) -> Tensor:
        def run(model: nn.Module, x: Tensor, y: Tensor, *_: int) -> Tensor:
            options = dict(self.options)
            if self.name == "HopSkipJumpAttack":
                options["constraint"] = self.norm
            attack = _made(self.name, tuple(options.items()))
            if self.name in FROM_FOOLING:
                return _from_fooling(attack, self.name, model, x, y)
            images: Tensor = attack.run(*_given(model, x, y)).raw
            return images

        found = attacked(f"{LIBRARY}:{self.name}", run, model, x, y, samples)
        return only_fooling(model, x, y, found, samples)


def by_foolbox(name: str, norm: str | None = None, options: Options = ()) -> Attack:
    """The attack that foolbox calls `name`.

    Its settings are the library's defaults, or given by `options`, pairs of a keyword and a value.
    `norm` chooses where it serves several (HopSkipJumpAttack: l2, linf). Decision-based attacks
    begin at noise that fools, or for PointwiseAttack at salt and pepper; a sample for which none is
    found is left alone.

    These attacks draw from the global random states, here seeded by the first sample, and some of
    them look at the batch as a whole: what a sample gets depends on its batch. A sample is charged
    an even share of the batch's passes. The `loss` handed over is not used.

    Raises UserError for what the library does not have, or has and cannot be used.
    """
    pick(LIBRARY, name, SERVED, REFUSED)
    norm = norm or norms_of(name)[0]
    if takes_budget(name):
        return FoolboxBudget(name, norm, options)
    return FoolboxNearest(norm, name, options)


def _made(name: str, options: Options) -> Any:
    return built(f"{LIBRARY}:{name}", CLASSES[name], **dict(options))


def _given(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Any, Any, Any]:
    """Model, images and criterion in foolbox's types."""
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=x.device)
    return wrapped, ep.astensor(x), foolbox.criteria.Misclassification(ep.astensor(y))


def _from_fooling(attack: Any, name: str, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Start where noise fools; the attack itself would give up where one sample has no start."""
    if name in _FROM_NOISE:
        first: Any = foolbox.attacks.LinearSearchBlendedUniformNoiseAttack(
            directions=INITIAL_DIRECTIONS, steps=INITIAL_STEPS
        )
    else:
        first = foolbox.attacks.SaltAndPepperNoiseAttack()
    start: Tensor = first.run(*_given(model, x, y)).raw.detach().clamp(0, 1)
    with torch.no_grad():
        ready = model(start).argmax(1) != y
    if bool(ready.any()):
        starts = ep.astensor(start[ready])
        given = _given(model, x[ready], y[ready])
        start[ready] = attack.run(*given, starting_points=starts).raw.detach()
    return start


class ForeignModel(nn.Module):
    """A foolbox model of any framework as a torch module; see `foreign_model`."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self._model = model.transform_bounds((0, 1))
        self._last = getattr(model, "data_format", None) == "channels_last"
        self._dummy = _dummy(model)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            raise UserError(
                "this model comes from another framework and gives no gradients: choose an attack "
                "that needs none, such as foolbox:HopSkipJumpAttack"
            )
        images = x.detach().cpu().numpy()
        native = np.ascontiguousarray(images.transpose(0, 2, 3, 1)) if self._last else images
        inputs = ep.astensor(native) if self._dummy is None else ep.from_numpy(self._dummy, native)
        logits = self._model(inputs).numpy()
        return torch.tensor(logits, dtype=x.dtype, device=x.device)


def foreign_model(model: Any) -> nn.Module:
    """A torch module (B,C,H,W) in [0,1] -> logits (B,K) around a foolbox model.

    A model of another framework (`foolbox.NumPyModel`, `foolbox.JAXModel`) gives logits but no
    gradients, and is for attacks that need none: it raises UserError where gradients are asked for.
    Bounds and channels, where the model states `data_format`, are converted.
    """
    return ForeignModel(model)


def _dummy(model: Any) -> Any:
    """A tensor of the model's own framework, None where it takes numpy's arrays."""
    while model is not None:
        if (dummy := getattr(model, "dummy", None)) is not None:
            return dummy
        inner = getattr(model, "_model", None)
        model = inner if isinstance(inner, foolbox.models.base.Model) else None
    return None
