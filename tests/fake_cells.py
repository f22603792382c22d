"""Cells that train nothing, for the tests of the study runner: they take their time and leave a trace."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from pathlib import Path

from studies.design.cell import Cell
from studies.design.spec import StudySpec, TaskSpec
from studies.records.record import Record
from studies.running.conditions import Conditions
from studies.running.kept_search import forget_search


def make_spec(count: int = 3, **changes: object) -> StudySpec:
    """Returns a study of two methods."""
    values = {
        "name": "fake",
        "tasks": [TaskSpec("lenet5", "digits")],
        "methods": ["compressor", "magnitude"],
        "targets": ["4KB"],
        "seeds": range(count),
        "final_epochs": 10,
        "trial_epochs": 2,
    }
    return StudySpec(**(values | changes))  # type: ignore[arg-type]


def make_record(cell: Cell, conditions: Conditions, *, error: str | None = None) -> Record:
    """Returns a record that depends on the cell alone, but for its times."""
    task, method, target, seed = cell.key
    number = int(hashlib.sha256(cell.hash.encode()).hexdigest()[:8], 16)
    scores = {"test_accuracy": number / 2**32, "validation_accuracy": number / 2**33, "file_bytes": number % 4000}
    return Record(
        study=conditions.study,
        spec_hash=cell.hash,
        task=task,
        method=method,
        target=target,
        seed=seed,
        state="failed" if error else "finished",
        revision=conditions.revision,
        versions={},
        device="cpu",
        threads=conditions.threads,
        started=time.strftime("%H:%M:%S"),
        wall_seconds=time.perf_counter(),
        error=error,
        **({} if error else scores),
    )


def run(cell: Cell, conditions: Conditions) -> Record:
    """Returns a record after `FAKE_SECONDS`; writes "start PID CELL" and "end PID CELL" to the file `FAKE_LOG`.

    The seeds in `FAKE_RAISES` and `FAKE_DIES` end in an error, and in the death of the process.
    """
    note("start", cell)
    time.sleep(float(os.environ.get("FAKE_SECONDS", "0")))
    if str(cell.seed) in os.environ.get("FAKE_RAISES", "").split():
        raise RuntimeError(f"failed on purpose with seed {cell.seed}")
    if str(cell.seed) in os.environ.get("FAKE_DIES", "").split():
        print("last words", file=sys.stderr, flush=True)
        os.kill(os.getpid(), 9)
    note("end", cell)
    return make_record(cell, conditions)


def note(what: str, cell: Cell) -> None:
    """Appends a line to the log."""
    if "FAKE_LOG" in os.environ:
        with Path(os.environ["FAKE_LOG"]).open("a") as file:
            file.write(f"{what} {os.getpid()} {cell.name} {cell.seed}\n")


class HereExecutor:
    """Runs each cell in this process, when its end is waited for."""

    def __init__(self, conditions: Conditions, workers: int = 2) -> None:
        self.conditions, self.workers = conditions, workers
        self.cells: list[Cell] = []

    @property
    def running(self) -> int:
        return len(self.cells)

    @property
    def room(self) -> int:
        return self.workers - self.running

    def start(self, cell: Cell) -> None:
        self.cells.append(cell)

    def recorded(self, cell: Cell) -> None:
        forget_search(cell, self.conditions.storage)

    def finished(self, seconds: float) -> list[tuple[Cell, Record]]:
        if not self.cells:
            time.sleep(min(seconds, 0.05))
            return []
        cell = self.cells.pop(0)
        try:
            return [(cell, run(cell, self.conditions))]
        except RuntimeError as error:
            return [(cell, make_record(cell, self.conditions, error=f"Traceback\n{error}"))]

    def __enter__(self) -> HereExecutor:
        return self

    def __exit__(self, *_: object) -> None:
        self.cells.clear()
