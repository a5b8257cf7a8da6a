"""The tasks by name."""

from ..core import Table
from .classification import Classification

TASKS: Table[type[Classification]] = Table("task", {"classification": Classification})

__all__ = ["TASKS", "Classification"]
