"""Whether a robustness number can be believed: checks before the attacks, and signs beside them."""

from .examination import Examination, Finding
from .flags import ESCALATION, NOTES, REMEDIES, Flag, sentences
from .indicators import indicators
from .outputs import Connected, connected
from .preflight import half_precision_drift, preflight
from .views import ClassView, GradedView, View

__all__ = [
    "ESCALATION",
    "NOTES",
    "REMEDIES",
    "ClassView",
    "Connected",
    "Examination",
    "Finding",
    "Flag",
    "GradedView",
    "View",
    "connected",
    "half_precision_drift",
    "indicators",
    "preflight",
    "sentences",
]
