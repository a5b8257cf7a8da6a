"""What training lowers: objectives fill `.grad`, penalties are functions of the input gradient."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal, Protocol

from torch import Tensor, nn

from ..core import Loss
from ..fields import check_ranges


class Objective(Protocol):
    """How one batch becomes a gradient; the trainer does the rest."""

    def backward(self, model: nn.Module, x: Tensor, y: Tensor, loss: Loss) -> dict[str, Tensor]:
        """Add this batch's gradient to the parameters' `.grad`; return means to log.

        x (B,C,H,W) lies in [0,1]; `loss` gives (B,) losses.
        """
        ...

    def at(self, epoch: float) -> Objective:
        """The objective as it is once `epoch` epochs (a fraction counts) are done.

        Before it is ever asked, an objective is as it is at the end. Most never change, and inherit
        this; one around another passes it on.
        """
        return self


class Around(ABC):
    """Options of an objective that is made out of another one, such as adversarial training.

    A subclass is a frozen dataclass whose fields are flags; with their defaults it is off.
    """

    def __post_init__(self) -> None:
        """Raise UserError for the first number out of its range."""
        check_ranges(self)

    @property
    @abstractmethod
    def active(self) -> bool:
        """Whether the flags ask for it."""

    @property
    @abstractmethod
    def label(self) -> str:
        """Its part of a folder's name, as in at-pgd or sam0.05."""

    @abstractmethod
    def around(self, inner: Objective) -> Objective:
        """The objective that takes `inner` in its own way."""


class Penalty(ABC):
    """A price on the gradient of each sample's own loss with respect to its input.

    Per sample, not per batch: the weight of a sample does not depend on how many share its batch. A
    subclass is a frozen dataclass whose fields are flags, `<tag>_lamb` among them; at 0 it is off.
    """

    tag: ClassVar[str]

    def __post_init__(self) -> None:
        """Raise UserError for the first number out of its range."""
        check_ranges(self)

    @property
    def label(self) -> str:
        """The penalty in a folder's name: its tag and its lambda, as in fgr300."""
        return f"{self.tag}{getattr(self, self.lamb_flag()):g}"

    @classmethod
    def lamb_flag(cls) -> str:
        """The name of the flag, and field, that holds the penalty's lambda: fgr_lamb."""
        return f"{cls.tag}_lamb"

    @property
    @abstractmethod
    def weight(self) -> float:
        """What the mean penalty is multiplied by in the objective."""

    @property
    def quiet_epochs(self) -> float:
        """Epochs at the start of training that go without the penalty."""
        return 0.0

    @property
    def ramp_epochs(self) -> float:
        """Epochs, after the quiet ones, in which the weight rises linearly from 0."""
        return 0.0

    def ramp(self, epoch: float) -> float:
        """What the weight is multiplied by once `epoch` epochs (a fraction counts) are done."""
        risen = epoch - self.quiet_epochs
        if risen < 0:
            return 0.0
        return min(1.0, risen / self.ramp_epochs) if self.ramp_epochs > 0 else 1.0

    @abstractmethod
    def __call__(self, gradient: Tensor, x: Tensor) -> Tensor:
        """Penalties (B,) from dL_i/dx_i (B,C,H,W), part of a graph, and images x in [0,1]."""

    def prepare(self, x: Tensor) -> Tensor:
        """The images that loss and penalty are taken at; most penalties leave x as it is."""
        return x

    @property
    def edits(self) -> Literal["never", "non_finite", "always"]:
        """When `edited` matters: `always`, or only where a parameter's gradient is not finite."""
        return "never"

    def edited(self, gradients: list[Tensor]) -> list[Tensor]:
        """What is added to the weights' gradient, from the weighted penalty's own gradient.

        `gradients` are d(w mean_i P_i)/dtheta, one a parameter, of this penalty alone: without the
        loss's, and without those of other penalties.
        """
        return gradients
