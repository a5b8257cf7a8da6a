"""Whether a robustness number can be believed: checks before the attacks, and signs beside them."""

from .examination import Examination, Finding
from .flags import ESCALATION, NOTES, REMEDIES, Flag
from .indicators import indicators
from .outputs import Connected, connected
from .preflight import half_precision_drift, preflight

__all__ = [
    "ESCALATION",
    "NOTES",
    "REMEDIES",
    "Connected",
    "Examination",
    "Finding",
    "Flag",
    "connected",
    "half_precision_drift",
    "indicators",
    "preflight",
]
