"""One driver for each folder: two that ran one search would give one number two proposals, and end one trial twice."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from autocompress.errors import InvalidInputError

LOCK = "driver.lock"


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Holds a folder for the time of a search. The lock is the system's: it ends with the process, however that ends.

    On a folder that several machines share it holds where the file system has locks, as NFS 4 has.

    Raises:
        InvalidInputError: another driver holds it, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("a+")
    except OSError as error:
        raise InvalidInputError(f"storage {str(folder)!r} cannot be written: {error}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InvalidInputError(
                f"storage {str(folder)!r}: {_holder(folder / LOCK)} runs this search; a Ray search has one driver, "
                "which spreads its trials over the cluster: wait for its end, or end it and resume"
            ) from None
        file.truncate(0)
        file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}))
        file.flush()
        yield


def _holder(lock: Path) -> str:
    try:
        holder = json.loads(lock.read_text())
        return f"process {holder['pid']} on {holder['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
