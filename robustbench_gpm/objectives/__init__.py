"""The objectives by name, and how they are put together."""

from ..core import Table
from .accumulated import Accumulation
from .adversarial import AdversarialOptions, AdversarialTraining
from .awp import AdversarialWeights
from .base import Around, Objective, Penalty
from .edges import EdgeOptions
from .flow_gradient import FlowGradient
from .gpm import GPM
from .input_gradient import InputGradient
from .modes import PenaltyMode
from .parameter_gradient import GNPOptions
from .penalised import Penalised
from .sagm import SAGMOptions

PENALTIES: Table[type[Penalty]] = Table(
    "penalty", {p.tag: p for p in (FlowGradient, InputGradient, GPM)}
)
# From the inside out: what attacks the images does so once, whatever is then done with them.
AROUND: Table[type[Around]] = Table(
    "objective",
    {
        "edge": EdgeOptions,
        "accumulation": Accumulation,
        "gnp": GNPOptions,
        "sagm": SAGMOptions,
        "awp": AdversarialWeights,
        "adversarial": AdversarialOptions,
    },
)
MOVE_WEIGHTS = (GNPOptions, SAGMOptions, AdversarialWeights)  # of which one at a time

__all__ = [
    "AROUND",
    "GPM",
    "MOVE_WEIGHTS",
    "PENALTIES",
    "AdversarialOptions",
    "AdversarialTraining",
    "Around",
    "EdgeOptions",
    "FlowGradient",
    "GNPOptions",
    "InputGradient",
    "Objective",
    "Penalised",
    "Penalty",
    "PenaltyMode",
]
