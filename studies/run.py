"""The loop of a study: every cell that is not done is run once, by this runner or by another on the same folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, closing
from typing import Any, Protocol

from studies.cell import Cell
from studies.cell_locks import CellLocks
from studies.progress import StudyDisplay
from studies.record import Record
from studies.store import Store

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

    def finished(self, seconds: float) -> list[tuple[Cell, Record]]:
        """Returns the cells that have come to their end, with their records; waits for one, but not longer than so."""


def open_cells(cells: Sequence[Cell], records: Sequence[Record], *, retry_failed: bool = False) -> list[Cell]:
    """Returns the cells that are to be run: those without a record and, if so wished, those that only failed.

    Records of another version of a cell, with another digest, do not count.
    """
    done = {record.spec_hash for record in records if not (retry_failed and record.state == "failed")}
    return [cell for cell in cells if cell.hash not in done]


def run_cells(
    cells: Sequence[Cell], store: Store, executor: Executor, *, retry_failed: bool = False, progress: bool = True
) -> int:
    """Runs the cells that are not done, appends their records, and returns how many this runner did.

    It ends when none is left. Cells that another runner is at work on are waited for, and taken over if that ends
    without a record of them. Ctrl-C, or any other end, loses the cells that are running, and nothing else.

    Raises:
        InvalidInputError: the records cannot be read.
    """
    store.repair()
    records = store.read()
    before = Counter(record.spec_hash for record in records)
    waiting = open_cells(cells, records, retry_failed=retry_failed)
    if not waiting:
        return 0
    done = 0
    with (
        closing(CellLocks(store.folder)) as locks,
        executor,
        StudyDisplay(cells, waiting, progress=progress) as display,
    ):
        while waiting or executor.running:
            for cell in list(waiting):
                if executor.room < 1:
                    break
                if not locks.take(cell):
                    continue
                waiting.remove(cell)
                if len(store.records_of(cell)) == before[cell.hash]:
                    executor.start(cell)
                else:  # another runner has done it since
                    locks.release(cell)
                    display.done_elsewhere(cell)
            display.running(executor.running)
            for cell, record in executor.finished(POLL_SECONDS):
                store.append(record)
                locks.release(cell)
                display.ended(cell, record)
                done += 1
    return done
