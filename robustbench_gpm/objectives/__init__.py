"""The objectives by name, and how they are put together."""

from ..core import Table
from .adversarial import AdversarialOptions, AdversarialTraining
from .base import Around, Objective, Penalty
from .flow_gradient import FlowGradient
from .gpm import GPM
from .input_gradient import InputGradient
from .penalised import Penalised

PENALTIES: Table[type[Penalty]] = Table(
    "penalty", {p.tag: p for p in (FlowGradient, InputGradient, GPM)}
)
# From the inside out: what attacks the images does so once, whatever is then done with them.
AROUND: Table[type[Around]] = Table("objective", {"adversarial": AdversarialOptions})

__all__ = [
    "AROUND",
    "GPM",
    "PENALTIES",
    "AdversarialOptions",
    "AdversarialTraining",
    "Around",
    "FlowGradient",
    "InputGradient",
    "Objective",
    "Penalised",
    "Penalty",
]
