"""`python -m studies run`: what is open of a study, once all that can be known to be wrong has been looked for."""

from __future__ import annotations

import os
import shlex
from argparse import Namespace
from pathlib import Path

import torch

from autocompress.errors import AutocompressError
from studies.design.cell import Cell, cells_of, check_methods
from studies.design.checking import check_cells
from studies.design.spec import StudySpec
from studies.finding import find_study
from studies.records.machine import revision, usable_cores
from studies.records.store import Store
from studies.running.conditions import Conditions
from studies.running.local import LocalExecutor
from studies.running.run import Executor, open_cells, run_cells
from studies.running.run_cell import run_cell
from studies.running.status import states_of, status

SEARCHES = "searches"  # folder beside the records


class InterruptedStudyError(KeyboardInterrupt):
    """Ctrl-C, with what there is by now and how to go on."""


def run_study(options: Namespace) -> str:
    """Runs what is open of a study and returns its status.

    Raises:
        InvalidInputError, InfeasibleTargetError: the study asks for what cannot be; found before anything is trained.
        AutocompressError: cells failed.
        InterruptedStudyError: Ctrl-C.
    """
    spec, folder = find_study(options.study, smoke=options.smoke, results=options.results)
    if options.only:
        spec = spec.only(options.only)
    check_methods(spec)
    cells, store = cells_of(spec), Store(folder)
    to_do = open_cells(cells, store, retry_failed=options.retry_failed)
    if to_do:
        executor = _executor(options, spec, to_do, folder)
        try:
            run_cells(cells, store, executor, retry_failed=options.retry_failed, progress=not options.no_progress)
        except KeyboardInterrupt:
            raise InterruptedStudyError(_how_to_go_on(options, cells, store)) from None
    answer = status(cells, folder)
    failures = list(states_of(cells, store.read(cells), set()).values()).count("failed")
    if failures:
        again = "" if options.retry_failed else "; --retry-failed runs them again"
        raise AutocompressError(f"{failures} of {len(cells)} cells failed{again}\n{answer}")
    return answer


def _executor(options: Namespace, spec: StudySpec, to_do: list[Cell], folder: Path) -> Executor:
    """Returns what runs the cells, once all that can be known to be wrong has been looked for."""
    cpus = usable_cores()
    if options.ray_address is not None:
        from studies.running.cluster import ClusterExecutor

        threads = options.cpus_per_cell or 1
        conditions = _conditions(options, spec, folder, threads, options.gpus_per_cell or 0.0)
        cluster = ClusterExecutor(options.ray_address, conditions, workers=options.workers, modules=tuple(spec.modules))
        cluster.on_cluster(check_cells, to_do)
        return cluster
    check_cells(to_do)
    gpus = torch.cuda.device_count()
    workers = options.workers or max(1, (gpus or cpus) // spec.workers)
    threads = options.cpus_per_cell or max(1, cpus // (workers * spec.workers))
    # Ray counts in ten-thousandths; rounded down, so that all workers' shares fit.
    share = min(1.0, int(10_000 * gpus / workers) / 10_000)
    share = share if options.gpus_per_cell is None else options.gpus_per_cell
    conditions = _conditions(options, spec, folder, threads, share)
    return LocalExecutor(workers, conditions, run_cell)


def _conditions(options: Namespace, spec: StudySpec, folder: Path, threads: int, gpus: float) -> Conditions:
    # How many threads a library may start at all is the user's to say.
    limit = os.environ.get("OMP_NUM_THREADS", "")
    threads = min(threads, int(limit)) if limit.isdigit() and int(limit) > 0 else threads
    # The nodes of a cluster do not see the folder of the study, unless it is named.
    own = None if options.ray_address else folder.absolute() / SEARCHES
    storage = own if options.storage is None else os.path.abspath(options.storage)
    return Conditions(
        spec.name,
        revision(),
        str(folder.absolute()),
        threads,
        cpus=float(threads),
        gpus=gpus,
        storage=None if storage is None else str(storage),
    )


def _how_to_go_on(options: Namespace, cells: list[Cell], store: Store) -> str:
    """Returns what to say after Ctrl-C."""
    left = len(open_cells(cells, store))
    smoke = ["--smoke"] if options.smoke else []
    results = ["--results", str(options.results)] if options.results else []
    again = shlex.join(["python", "-m", "studies", "run", options.study, *smoke, *results])
    return f"interrupted with {len(cells) - left} of {len(cells)} cells done; to go on: {again}"
