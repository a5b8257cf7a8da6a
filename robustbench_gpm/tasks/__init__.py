"""The tasks by name."""

from ..core import Table
from .base import GradedTask, Measured, Task
from .classification import Classification
from .detection import Detection
from .multilabel import MultiLabel
from .segmentation import Segmentation
from .video import Video

_ALL: tuple[type[Task], ...] = (Classification, Segmentation, Detection, Video, MultiLabel)
TASKS: Table[type[Task]] = Table("task", {task.name: task for task in _ALL})

__all__ = ["TASKS", "Classification", "Detection", "GradedTask", "Measured", "Segmentation", "Task"]
