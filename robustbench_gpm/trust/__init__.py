"""Whether a robustness number can be believed: checks before the attacks, and signs beside them."""

from .flags import ESCALATION, NOTES, REMEDIES, Flag
from .indicators import indicators
from .outputs import Connected
from .preflight import half_precision_drift, preflight

__all__ = [
    "ESCALATION",
    "NOTES",
    "REMEDIES",
    "Connected",
    "Flag",
    "half_precision_drift",
    "indicators",
    "preflight",
]
