"""Who is at work on which cell of a study.

The byte at an offset that a cell's digest gives is locked, in the empty file `claims.lock`, while the cell is run. The
locks are the system's, so they end with the process that holds them, however it ends.

A cell's record is only appended under its claim, after a look at the records under the same claim: so no cell is done
twice, be it that two runners work on one study or that one was killed and another takes over. On a folder that several
machines share this holds where the file system has POSIX locks, as NFS 4 has, and Lustre if it is mounted with `flock`.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from pathlib import Path

from studies.cell import Cell

CLAIMS = "claims.lock"
# Of a cell's digest, in hexadecimal digits: a file offset has 63 bits.
OFFSET_DIGITS = 15


class CellLocks:
    """Which cells of a study somebody is at work on.

    Make one of them for a folder in a process and keep it: the system gives up a process's locks on a file as soon as
    the process closes the file anywhere, and knows none between parts of one process.
    """

    def __init__(self, folder: Path) -> None:
        """Opens the file of the claims.

        Args:
            folder: of the study; made if it is not there.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(folder / CLAIMS, os.O_RDWR | os.O_CREAT, 0o666)

    def take(self, cell: Cell) -> bool:
        """Returns whether the cell is now this process's to run; False where another runs it."""
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _offset(cell))
        except (BlockingIOError, PermissionError):  # POSIX leaves it to the system which of the two
            return False
        return True

    def release(self, cell: Cell) -> None:
        """Gives a cell back."""
        fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, _offset(cell))

    def close(self) -> None:
        """Gives all cells back."""
        os.close(self._descriptor)


def claimed(folder: Path, cells: Sequence[Cell]) -> list[Cell]:
    """Returns those of the cells that a runner in another process is at work on."""
    if not (folder / CLAIMS).exists():
        return []
    try:
        claims = CellLocks(folder)
    except OSError:  # of somebody else, and not to be written: nothing of ours runs in it
        return []
    try:
        free = {cell.hash for cell in cells if claims.take(cell)}
    finally:
        claims.close()
    return [cell for cell in cells if cell.hash not in free]


def _offset(cell: Cell) -> int:
    return int(cell.hash[:OFFSET_DIGITS], 16)
