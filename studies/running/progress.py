"""What is shown while a study runs: cells done, running and failed, the time left."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Collection

from tqdm import tqdm

from studies.design.cell import Cell
from studies.records.record import Record

logger = logging.getLogger(__name__)
BAR = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} cells{postfix}"


class StudyDisplay:
    """A bar on stderr where that is a terminal; elsewhere one line in the log for each cell.

    The time left is told by the epochs left: cells of one study differ by a factor of ten.
    """

    def __init__(self, cells: Collection[Cell], to_do: Collection[Cell], *, progress: bool = True) -> None:
        self.total, self.left = len(cells), {cell.hash: cell.epochs for cell in to_do}
        self.left_epochs = sum(self.left.values())
        self.failed, self.finished_epochs, self.started = 0, 0.0, time.monotonic()
        self._terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=self.total,
            initial=self.total - len(self.left),
            desc="study",
            bar_format=BAR,
            file=sys.stderr,
            disable=not (progress and self._terminal),
        )

    def running(self, count: int) -> None:
        self._bar.set_postfix_str(f"{count} running, {self.failed} failed, {self.time_left()} left")

    def ended(self, cell: Cell, record: Record) -> None:
        self.finished_epochs += self._take(cell)
        self._bar.update()
        if record.state == "failed":
            self.failed += 1
            logger.warning("%s failed: %s", cell, last_line(record.error))
        elif not self._terminal:
            test = 100 * (record.test_accuracy or 0.0)
            logger.info(
                "%d of %d cells done, %d failed, %s left: %s: test accuracy %.2f %%, %s bytes, %s",
                self.total - len(self.left),
                self.total,
                self.failed,
                self.time_left(),
                cell,
                test,
                record.file_bytes,
                duration(record.wall_seconds),
            )

    def done_elsewhere(self, cell: Cell) -> None:
        self._take(cell)
        self._bar.update()

    def _take(self, cell: Cell) -> float:
        epochs = self.left.pop(cell.hash)
        self.left_epochs -= epochs
        return epochs

    def time_left(self) -> str:
        if not self.finished_epochs:
            return "unknown time"
        return duration((time.monotonic() - self.started) * max(0.0, self.left_epochs) / self.finished_epochs)

    def __enter__(self) -> StudyDisplay:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()


def last_line(error: str | None) -> str:
    """Returns the last line of a traceback: what went wrong."""
    return (error or "").strip().rpartition("\n")[2] or "no traceback"


def duration(seconds: float) -> str:
    """Returns a time as text, such as `40 s`, `12 min`, `3.1 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
