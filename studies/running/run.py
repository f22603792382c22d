"""The loop of a study: every cell that is not done is run once, by this runner or by another on the same folder."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import AbstractContextManager, closing
from typing import Any, Protocol

from studies.design.cell import Cell
from studies.records.record import Record
from studies.records.store import CellLocks, Store
from studies.running.progress import StudyDisplay

# How long a runner waits before it looks again for what others may have left.
POLL_SECONDS = 1.0


class Executor(AbstractContextManager[Any], Protocol):
    """Runs cells somewhere; leaving it ends what is still running."""

    @property
    def running(self) -> int:
        """How many cells are being run."""

    @property
    def room(self) -> int:
        """How many more may be started."""

    def start(self, cell: Cell) -> None:
        """Begins a cell."""

    def recorded(self, cell: Cell) -> None:
        """Called once a cell's record is written: nothing else of it is needed any more."""

    def finished(self, seconds: float) -> list[tuple[Cell, Record]]:
        """Returns the cells that have come to their end, with their records; waits for one, but not longer than so."""


def open_cells(cells: Sequence[Cell], store: Store, *, retry_failed: bool = False) -> list[Cell]:
    """Returns the cells that are to be run: those without a record and, if so wished, those that only failed.

    Records of another version of a cell, with another digest, do not count.

    Raises:
        InvalidInputError: the records cannot be read.
    """
    done = store.digests()
    if retry_failed:
        done -= {record.spec_hash for record in store.read(cells) if record.state == "failed"}
    return [cell for cell in cells if cell.hash not in done]


def run_cells(
    cells: Sequence[Cell], store: Store, executor: Executor, *, retry_failed: bool = False, progress: bool = True
) -> int:
    """Runs the cells that are not done, writes their records, and returns how many this runner did.

    It ends when none is left. Cells that another runner is at work on are waited for, and taken over if that ends
    without a record of them. Ctrl-C, or any other end, loses of the cells that are running what trains, but no trial of
    a search that has ended. Its own work for a cell does not depend on how many there are.

    Raises:
        InvalidInputError: the records cannot be read.
    """
    waiting = deque(open_cells(cells, store, retry_failed=retry_failed))
    if not waiting:
        return 0
    before = {cell.hash: store.stamp(cell) for cell in waiting}
    done = 0
    with (
        closing(CellLocks(store.folder)) as locks,
        executor,
        StudyDisplay(cells, waiting, progress=progress) as display,
    ):
        while waiting or executor.running:
            for _ in range(len(waiting)):
                if executor.room < 1:
                    break
                cell = waiting.popleft()
                if not locks.take(cell):
                    waiting.append(cell)  # another runner's; looked at again after the others
                elif store.stamp(cell) == before[cell.hash]:
                    executor.start(cell)
                else:  # another runner has done it since
                    locks.release(cell)
                    display.done_elsewhere(cell)
            display.running(executor.running)
            for cell, record in executor.finished(POLL_SECONDS):
                store.write(record)
                if record.state == "finished":
                    executor.recorded(cell)
                locks.release(cell)
                display.ended(cell, record)
                done += 1
    return done
