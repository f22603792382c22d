"""What is trained: networks and data by name, or of one's own; a `Task` is one of each."""

from autocompress.task.named_task import Task, load_task

__all__ = ["Task", "load_task"]
