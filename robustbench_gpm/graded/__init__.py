"""Evaluations of tasks whose metric is of many samples together: segmentation, detection."""

from .evaluator import GradedEvaluator
from .examples import Picture
from .merging import merged
from .records import GradedAttack, GradedRecords, Level, holds_graded, read, write

__all__ = [
    "GradedAttack",
    "GradedEvaluator",
    "GradedRecords",
    "Level",
    "Picture",
    "holds_graded",
    "merged",
    "read",
    "write",
]
