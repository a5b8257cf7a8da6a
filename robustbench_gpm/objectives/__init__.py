"""The objectives by name, and how they are put together."""

from ..core import Table
from .adversarial import AdversarialOptions, AdversarialTraining
from .base import Objective, Penalty
from .flow_gradient import FlowGradient
from .gpm import GPM
from .input_gradient import InputGradient
from .penalised import Penalised

PENALTIES: Table[type[Penalty]] = Table(
    "penalty", {p.tag: p for p in (FlowGradient, InputGradient, GPM)}
)

__all__ = [
    "GPM",
    "PENALTIES",
    "AdversarialOptions",
    "AdversarialTraining",
    "FlowGradient",
    "InputGradient",
    "Objective",
    "Penalised",
    "Penalty",
]
