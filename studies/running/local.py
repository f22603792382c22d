"""Cells on this machine: some processes at a time, and one Ray for all searches that need it."""

from __future__ import annotations

import multiprocessing.connection
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from baselines.interface import SearchSettings
from studies.design.cell import Cell
from studies.records.machine import CHECKOUT
from studies.records.record import Record
from studies.running.cell_process import CellFunction, CellProcess
from studies.running.conditions import Conditions
from studies.running.kept_search import folder_of, forget_search


class LocalExecutor:
    """Runs each cell in a process of its own, at most `workers` at a time."""

    def __init__(self, workers: int, conditions: Conditions, function: CellFunction) -> None:
        """Starts nothing yet.

        Args:
            workers: processes at a time.
            conditions: of all cells; where they name no cluster, a Ray is started for the first cell that needs one.
            function: what a process does; importable in it.
        """
        self.workers, self.conditions, self.function = workers, conditions, function
        self._processes: list[CellProcess] = []
        self._stack = ExitStack()
        # Of what cells print where nothing of them is kept; else that lies beside what is, and goes with it.
        self._folder: Path | None = None
        if conditions.storage is None:
            self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="study-")))

    @property
    def running(self) -> int:
        return len(self._processes)

    @property
    def room(self) -> int:
        return self.workers - self.running

    def start(self, cell: Cell) -> None:
        if cell.uses_ray and self.conditions.ray_address is None:
            self.conditions = replace(self.conditions, ray_address=self._start_ray(cell.workers))
        folder = self._folder or folder_of(cell, self.conditions)
        assert folder is not None
        log = folder / f"{cell.hash}.log"
        self._processes.append(CellProcess.start(self.function, cell, self.conditions, log))

    def recorded(self, cell: Cell) -> None:
        forget_search(cell, self.conditions.storage)

    def finished(self, seconds: float) -> list[tuple[Cell, Record]]:
        if not self._processes:
            time.sleep(seconds)
            return []
        by_connection = {process.connection: process for process in self._processes}
        ready = [by_connection[each] for each in multiprocessing.connection.wait(list(by_connection), seconds)]  # type: ignore[index]
        self._processes = [process for process in self._processes if process not in ready]
        return [(process.cell, process.record(self._failed)) for process in ready]

    def __enter__(self) -> LocalExecutor:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.process.terminate()
        for process in self._processes:
            process.end()
        self._processes = []
        self._stack.close()

    def _failed(self, cell: Cell, error: str, started: str, wall_seconds: float) -> Record:
        from studies.running.run_cell import failed  # brings PyTorch, which nothing else here needs

        return failed(cell, self.conditions, error, started, wall_seconds)

    def _start_ray(self, workers: int) -> str:
        """Returns the address of a Ray that lives as long as this object, with room for so many trials of each cell."""
        from baselines.ray_search.cluster import connected, quiet

        self._stack.enter_context(quiet())
        # Its workers find there what the user's own models and data are made of.
        path = [os.environ.get("PYTHONPATH", ""), str(CHECKOUT), *sys.path]
        os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(folder for folder in path if folder))
        conditions = self.conditions
        settings = SearchSettings(
            1, workers=self.workers * workers, cpus_per_trial=conditions.cpus, gpus_per_trial=conditions.gpus
        )
        self._stack.enter_context(connected(settings))
        import ray

        return str(ray.get_runtime_context().gcs_address)
