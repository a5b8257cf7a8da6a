"""Attacks of torchattacks (https://github.com/Harry24k/adversarial-attacks-pytorch) as ours."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torchattacks
from torch import Tensor, nn

from ..core import Loss, Samples
from .base import Attack
from .foreign import Options, attacked, built, check_norm, only_fooling, pick
from .geometry import shrink
from .minimum_norm import MinimumNormAttack
from .threats import THREATS, Threat

LIBRARY = "torchattacks"

_LINF = (
    "FGSM BIM RFGSM PGD EOTPGD FFGSM TPGD MIFGSM UPGD DIFGSM TIFGSM Jitter NIFGSM PGDRS SINIFGSM "
    "VMIFGSM VNIFGSM SPSA PIFGSM PIFGSMPP"
)
# The norms each takes a budget in, its own default first.
BUDGETED: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(_LINF.split(), ("linf",)),
    "PGDL2": ("l2",),
    "PGDRSL2": ("l2",),
    "APGD": ("linf", "l2"),
    "APGDT": ("linf", "l2"),
    "FAB": ("linf", "l2", "l1"),
    "Square": ("linf", "l2"),
    "AutoAttack": ("linf", "l2"),
    "OnePixel": ("l0",),
}
# Those without a budget, by the norm that their papers keep small.
NEAREST: dict[str, str] = {
    "CW": "l2",
    "DeepFool": "l2",
    "GN": "l2",
    "EADL1": "l1",
    "EADEN": "l1",
    "SparseFool": "l0",
    "Pixle": "l0",
    "JSMA": "l0",
}
REFUSED: dict[str, str] = {
    "VANILA": "it attacks nothing",
    "MultiAttack": "it needs a list of attacks; name them one by one",
    "LGV": "it trains further models and needs a data loader",
}
_NORM_NAMES = {"linf": "Linf", "l2": "L2", "l1": "L1"}


@dataclass(frozen=True)
class TorchattacksBudget(Attack):
    """An attack of torchattacks that takes a budget; see `by_torchattacks`."""

    batch_dependent: ClassVar[bool] = True

    name: str = "PGD"
    norm: str = "linf"
    options: Options = ()

    def __post_init__(self) -> None:
        """Refuse what the library does not have."""
        super().__post_init__()
        pick(LIBRARY, self.name, BUDGETED, REFUSED)
        check_norm(f"{LIBRARY}:{self.name}", self.norm, BUDGETED[self.name])

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
        if budget == 0 or (self.name == "OnePixel" and budget < x.shape[1]):
            return x.clone()

        def run(model: nn.Module, x: Tensor, y: Tensor, classes: int, seed: int) -> Tensor:
            keywords = self._keywords(budget, x.shape[1], classes, seed)
            return _run(self.name, {**keywords, **dict(self.options)}, model, x, y, classes)

        found = attacked(f"{LIBRARY}:{self.name}", run, model, x, y, samples)
        return (x + shrink(found - x, budget, self.norm)).clamp(0, 1)

    def _keywords(self, budget: float, channels: int, classes: int, seed: int) -> dict[str, object]:
        """The budget, the step in proportion to it, and what the class asks for besides."""
        if self.name == "OnePixel":
            return {"pixels": math.floor(budget / channels)}
        parameters = inspect.signature(getattr(torchattacks, self.name)).parameters
        unit = "eps" if "eps" in parameters else "max_epsilon"
        wanted: dict[str, object] = {unit: budget, "seed": seed, "n_classes": classes}
        wanted["norm"] = _NORM_NAMES.get(self.norm)
        if "alpha" in parameters:
            wanted["alpha"] = budget * parameters["alpha"].default / parameters[unit].default
        return {name: value for name, value in wanted.items() if name in parameters}


@dataclass(frozen=True)
class TorchattacksNearest(MinimumNormAttack):
    """An attack of torchattacks that takes no budget; see `by_torchattacks`."""

    batch_dependent: ClassVar[bool] = True

    name: str = "CW"
    options: Options = ()

    def __post_init__(self) -> None:
        """Refuse what the library does not have."""
        super().__post_init__()
        pick(LIBRARY, self.name, NEAREST, REFUSED)
        check_norm(f"{LIBRARY}:{self.name}", self.norm, (NEAREST[self.name],))

    def search(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        budget: float,  # noqa: ARG002
        loss: Loss,  # noqa: ARG002
        samples: Samples,
    ) -> Tensor:
        def run(model: nn.Module, x: Tensor, y: Tensor, classes: int, _: int) -> Tensor:
            return _run(self.name, dict(self.options), model, x, y, classes)

        found = attacked(f"{LIBRARY}:{self.name}", run, model, x, y, samples)
        return only_fooling(model, x, y, found, samples)


def by_torchattacks(name: str, norm: str | None = None, options: Options = ()) -> Attack:
    """The attack that torchattacks calls `name`.

    The budget is its `eps`; where it has an `alpha`, the step keeps its default share of `eps`.
    Other settings (SPSA's step among them) are the library's defaults, or given by `options`, pairs
    of a keyword and a value. `norm` chooses where it serves several. JSMA, which aims at a class,
    aims at the one after the right one. OnePixel changes as many whole pixels as the budget pays.

    These attacks draw from torch's and numpy's global random states, here seeded by the first
    sample, and some of them look at the batch as a whole: what a sample gets depends on its batch.
    A sample is charged an even share of the batch's passes. The `loss` handed over is not used.

    Raises UserError for what the library does not have, or has and cannot be used.
    """
    pick(LIBRARY, name, [*BUDGETED, *NEAREST], REFUSED)
    if name in NEAREST:
        return TorchattacksNearest(norm or NEAREST[name], name, options)
    return TorchattacksBudget(name, norm or BUDGETED[name][0], options)


def _run(
    name: str, keywords: dict[str, Any], model: nn.Module, x: Tensor, y: Tensor, classes: int
) -> Tensor:
    attack = built(f"{LIBRARY}:{name}", getattr(torchattacks, name), model, **keywords)
    if name == "JSMA":  # its own default takes ten classes for granted
        attack.set_mode_targeted_by_function(lambda _, y: (y + 1) % classes, quiet=True)
    images: Tensor = attack(x, y)
    return images
