"""Child processes: out of reach of Ctrl-C, and ended by their parent, or with it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

from tqdm import tqdm


def start_process(target: Callable[..., None], *arguments: Any, daemon: bool) -> tuple[SpawnProcess, Connection]:
    """Returns (a new process at work on `target(connection, *arguments)`, the other end of that connection).

    Ctrl-C reaches all processes of a terminal, but not this one; here it is put off until that has begun.

    Args:
        target: importable.
        arguments: that can be pickled.
        daemon: True = it may have no processes of its own.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_work, args=(target, there, *arguments), daemon=daemon)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    there.close()
    return process, here


def _work(target: Callable[..., None], connection: Connection, *arguments: Any) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # tqdm's own lock is a semaphore of the system's, which would outlive a process that is terminated.
    tqdm.set_lock(threading.RLock())
    target(connection, *arguments)


def _end_with_parent() -> None:
    """Ends this process as soon as its parent has ended, however that ended."""
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
