"""The end of a child process: by its parent, or with it."""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing.context import SpawnProcess


def end_with_parent() -> None:
    """Ends this process as soon as its parent has ended, however that ended; to be run in a thread of its own."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def end_process(process: SpawnProcess, seconds: float) -> None:
    """Ends a process, if it is not over: it has so many seconds before it is killed."""
    process.terminate()
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
