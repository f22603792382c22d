"""A process of its own for each cell, so that neither a crash nor what it leaves in memory reaches another."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path

from baselines.child_process import end_process, start_process
from studies.design.cell import Cell
from studies.records.record import Record
from studies.running.conditions import Conditions

CellFunction = Callable[[Cell, Conditions], Record]
# Of what a process printed before it died, so much is told.
LOG_LINES = 30
END_SECONDS = 2.0


@dataclass
class CellProcess:
    """A process that runs one cell, seen from the parent.

    Attributes:
        cell: that it runs.
        process, connection: its two handles.
        log: file of what it prints.
        started: seconds since the epoch.
    """

    cell: Cell
    process: SpawnProcess
    connection: Connection
    log: Path
    started: float

    @classmethod
    def start(cls, function: CellFunction, cell: Cell, conditions: Conditions, log: Path) -> CellProcess:
        # No daemon: a search runs its trials in processes.
        process, connection = start_process(_work, function, cell, conditions, log, daemon=False)
        return cls(cell, process, connection, log, time.time())

    def record(self, failed: Callable[[Cell, str, str, float], Record]) -> Record:
        """Returns the record of the cell, once the connection has something to tell; the process is over then.

        Args:
            failed: makes the record of (cell, error, when it was started, wall seconds) where the process made none.
        """
        try:
            answer = self.connection.recv()
        except (EOFError, OSError):
            answer = None
        self.process.join(END_SECONDS)
        self.end()
        if isinstance(answer, Record):
            return answer
        error = answer or f"{self._printed()}\nthe process of the cell ended with {self._exit()}"
        started = datetime.fromtimestamp(self.started, UTC).isoformat(timespec="seconds")
        return failed(self.cell, error, started, time.time() - self.started)

    def end(self) -> None:
        """Ends the process, if it is not over; it ends quickly or is killed."""
        end_process(self.process, END_SECONDS)
        self.connection.close()

    def _exit(self) -> str:
        code = self.process.exitcode
        if code is None or code >= 0:
            return f"exit code {code}"
        memory = "; was there too little memory?" if code == -signal.SIGKILL else ""
        return f"signal {-code} ({signal.Signals(-code).name}){memory}"

    def _printed(self) -> str:
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:])


def _work(connection: Connection, function: CellFunction, cell: Cell, conditions: Conditions, log: Path) -> None:
    """Sends the record of a cell, or a traceback; ends with its parent, however that ends."""
    os.setpgid(0, 0)  # out of reach of the terminal's Ctrl-C, which some searches would take for themselves
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(descriptor, stream.fileno())
    faulthandler.enable()
    try:
        answer: Record | str = function(cell, conditions)
    except Exception:  # sent to the parent, for whom it is a failed cell
        answer = traceback.format_exc()
    connection.send(answer)
