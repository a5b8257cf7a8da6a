"""Evaluations of tasks whose metric is of many samples together: segmentation, detection."""

from .evaluator import GradedEvaluator
from .records import GradedAttack, GradedRecords, Level, read, write

__all__ = ["GradedAttack", "GradedEvaluator", "GradedRecords", "Level", "read", "write"]
