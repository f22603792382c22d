"""Cells as tasks on a Ray cluster: each in a process of its own, on whatever node has room."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from autocompress.codec.atomic_write import write_whole
from baselines.interface import SearchSettings
from baselines.ray_search.cluster import check_address, connected, quiet
from studies.design.cell import Cell
from studies.records.machine import CHECKOUT
from studies.records.record import Record
from studies.running.cell_process import CellFunction
from studies.running.conditions import Conditions, Found
from studies.running.kept_search import forget_search
from studies.running.reference import make_reference, reference_path
from studies.running.run_cell import failed, finish_cell, search_cell

CONNECT_SECONDS = 10.0
FORGET_SECONDS = 30.0
# How often a cell is started again where its node or its process dies.
RETRIES = 3


class ClusterExecutor:
    """Runs cells as Ray tasks.

    A cell that searches with Ray is two tasks: the search, which only waits for its trials and so asks for no
    resources (all cells would hold what their own trials wait for), and the final training.
    """

    def __init__(
        self,
        address: str,
        conditions: Conditions,
        *,
        workers: int | None = None,
        modules: Sequence[str] = (),
        function: CellFunction | None = None,
    ) -> None:
        """Connects to the cluster.

        Args:
            address: of the cluster.
            conditions: of all cells; `cpus` and `gpus` are what each holds.
            workers: cells at a time; None = as many as the cluster has room for.
            modules: folders of packages that the nodes lack.
            function: what is done with each cell; default: `search_cell` and `finish_cell`.

        Raises:
            InvalidInputError: there is no cluster, or none of its nodes can hold a cell.
        """
        check_address(address, CONNECT_SECONDS)
        self.conditions = replace(conditions, ray_address=None)  # in a task the cluster is known
        self._workers, self._running = workers, dict[Any, tuple[Cell, float]]()
        self._stack = ExitStack()
        self._stack.enter_context(quiet())
        settings = SearchSettings(
            1, ray_address=address, cpus_per_trial=conditions.cpus, gpus_per_trial=conditions.gpus
        )
        self._stack.enter_context(connected(settings, [str(CHECKOUT / "studies"), *modules]))
        resources = {"num_cpus": conditions.cpus, "num_gpus": conditions.gpus}
        self._whole = _task(function, **resources) if function else None
        self._reference = _task(make_reference, **resources)
        self._search = _task(search_cell, num_cpus=0)
        self._finish = _task(_finish, **resources)
        self._references, self._forgetting = dict[Path, Any](), list[Any]()

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def room(self) -> int:
        return (self._workers or max(1, sum(map(self._places, _nodes())))) - self.running

    def start(self, cell: Cell) -> None:
        if self._whole is not None:
            reference = self._whole.remote(cell, self.conditions)
        else:
            shipped = self._shipped(cell)
            found = self._search.remote(cell, self.conditions, shipped) if cell.uses_ray else None
            # Trials that run side by side in a cell's own processes take a place each.
            cpus = self.conditions.cpus * (1 if cell.uses_ray else cell.workers)
            reference = self._finish.options(num_cpus=cpus).remote(cell, self.conditions, shipped, found)
        self._running[reference] = cell, time.time()

    def recorded(self, cell: Cell) -> None:
        """Lets some node remove the search of a cell whose record is written."""
        if self.conditions.storage is not None:
            self._forgetting.append(ray.remote(num_cpus=0)(forget_search).remote(cell, self.conditions.storage))

    def finished(self, seconds: float) -> list[tuple[Cell, Record]]:
        if not self._running:
            time.sleep(seconds)
            return []
        ready, _ = ray.wait(list(self._running), timeout=seconds)
        return [self._record(reference) for reference in ready]

    def on_cluster(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Returns what a function returns on some node.

        Raises:
            Exception: what the function raised there.
        """
        try:
            return ray.get(ray.remote(num_cpus=0)(function).remote(*arguments))
        except RayTaskError as error:
            raise error.cause from None

    def __enter__(self) -> ClusterExecutor:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        if error is None and self._forgetting:  # with this driver these tasks would end, too
            ray.wait(self._forgetting, num_returns=len(self._forgetting), timeout=FORGET_SECONDS)
        for reference in self._running:
            ray.cancel(reference, force=True)
        self._running.clear()
        self._stack.close()

    def _record(self, reference: Any) -> tuple[Cell, Record]:
        cell, started = self._running.pop(reference)
        try:
            record: Record = ray.get(reference)
            self._keep_reference(cell)
        except RayError as error:
            when = datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds")
            record = failed(cell, self.conditions, str(error), when, time.time() - started)
        return cell, record

    def _shipped(self, cell: Cell) -> Any:
        """Returns Ray's name for a cell's reference: the study's own, or one that some node trains, once."""
        path = reference_path(cell, Path(self.conditions.folder))
        if path not in self._references:
            known = path.exists()
            self._references[path] = ray.put(path.read_bytes()) if known else self._reference.remote(cell)
        return self._references[path]

    def _keep_reference(self, cell: Cell) -> None:
        """Writes a cell's reference beside the records, before its record is: who goes on later starts from it."""
        path = reference_path(cell, Path(self.conditions.folder))
        if path in self._references and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, ray.get(self._references[path]))

    def _places(self, node: dict[str, Any]) -> int:
        """Returns how many cells a node can hold at a time."""
        wanted = {"CPU": self.conditions.cpus, "GPU": self.conditions.gpus}
        places = [node["Resources"].get(kind, 0.0) / amount for kind, amount in wanted.items() if amount > 0]
        return math.floor(min(places, default=float(os.cpu_count() or 1)) + 1e-9)


def _finish(cell: Cell, conditions: Conditions, reference: bytes, found: Found | None) -> Record:
    """Returns the record of a cell: searched here, unless its search was a task of its own."""
    found = search_cell(cell, conditions, reference) if found is None else found
    return finish_cell(cell, conditions, reference, found)


def _task(function: Callable[..., Any], **resources: float) -> Any:
    """Returns a remote function: one call for each process, so that nothing of a cell reaches another."""
    options: dict[str, Any] = {"max_retries": RETRIES, "max_calls": 1, **resources}
    return ray.remote(**options)(function)


def _nodes() -> list[dict[str, Any]]:
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node for node in nodes if node["Alive"]]
