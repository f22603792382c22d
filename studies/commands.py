"""The commands: from their options to what they print."""

from __future__ import annotations

import os
import shlex
from argparse import Namespace

import torch

from autocompress.errors import AutocompressError
from studies.cell import Cell, cells_of, check_methods
from studies.checking import check_cells
from studies.conditions import Conditions
from studies.finding import RESULTS, find_study, own_specs
from studies.local import LocalExecutor
from studies.measure import revision
from studies.run import Executor, open_cells, run_cells
from studies.spec import StudySpec
from studies.status import states_of, status
from studies.store import Store, records_of


class InterruptedStudyError(KeyboardInterrupt):
    """Ctrl-C, with what there is by now and how to go on."""


def list_command(options: Namespace) -> str:
    """Returns the studies, one line each."""
    rows = []
    for spec in own_specs().values():
        cells = cells_of(spec)
        records = Store((options.results or RESULTS) / spec.name).read()
        finished = list(states_of(cells, records, set()).values()).count("finished")
        rows.append((spec.name, f"{finished} of {len(cells)} cells", spec.description.partition("\n")[0]))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "\n".join(f"{name:{widths[0]}}  {count:>{widths[1]}}  {what}" for name, count, what in rows)


def run_command(options: Namespace) -> str:
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
    to_do = open_cells(cells, store.read(), retry_failed=options.retry_failed)
    if to_do:
        executor = _executor(options, spec, to_do)
        try:
            run_cells(cells, store, executor, retry_failed=options.retry_failed, progress=not options.no_progress)
        except KeyboardInterrupt:
            raise InterruptedStudyError(_how_to_go_on(options, cells, store)) from None
    answer = status(cells, folder)
    failures = list(states_of(cells, store.read(), set()).values()).count("failed")
    if failures:
        again = "" if options.retry_failed else "; --retry-failed runs them again"
        raise AutocompressError(f"{failures} of {len(cells)} cells failed{again}\n{answer}")
    return answer


def status_command(options: Namespace) -> str:
    """Returns how far a study has come."""
    spec, folder = find_study(options.study, smoke=options.smoke, results=options.results)
    return status(cells_of(spec), folder)


def report_command(options: Namespace) -> str:
    """Writes the tables, figures and page of a study and returns the table."""
    from studies.report import report_command as write_report

    spec, folder = find_study(options.study, smoke=options.smoke, results=options.results)
    cells = cells_of(spec)
    keys = [cell.key for cell in cells]
    out = options.out or folder
    records = records_of(cells, folder)
    return write_report(spec.name, records, keys, out, partial=options.partial, description=describe(spec))


def compare_command(options: Namespace) -> str:
    """Returns the table of the cells that two studies share."""
    from studies.report import compare_command as write_comparison

    both = [find_study(name, results=options.results) for name in (options.a, options.b)]
    (name_a, a), (name_b, b) = ((spec.name, records_of(cells_of(spec), folder)) for spec, folder in both)
    return write_comparison(name_a, a, name_b, b, partial=options.partial)


def describe(spec: StudySpec) -> str:
    """Returns what a study compares, in lines of plain text."""
    searches = {cell.name: cell for cell in cells_of(spec) if cell.trials}
    lines = [spec.description] if spec.description else []
    lines.append(f"final training: {spec.final_epochs} epochs, as many as the compressor has in all")
    own = {variant.name: variant.budget for variant in spec.variants if variant.budget is not None}
    for name, cell in searches.items():
        budget = spec.budgets.get(name, own.get(name, spec.budget))
        most = f"at most {cell.trials} trials of {cell.trial_epochs} epochs"
        lines.append(f"{name}: {most}, {budget:g} times the compressor's steps; space {cell.space}")
    return "\n".join(lines)


def _executor(options: Namespace, spec: StudySpec, to_do: list[Cell]) -> Executor:
    """Returns what runs the cells, once all that can be known to be wrong has been looked for."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if options.ray_address is not None:
        from studies.cluster import ClusterExecutor

        threads = options.cpus_per_cell or 1
        conditions = _conditions(options, spec, threads, options.gpus_per_cell or 0.0)
        cluster = ClusterExecutor(options.ray_address, conditions, workers=options.workers, modules=tuple(spec.modules))
        cluster.on_cluster(check_cells, to_do)
        return cluster
    check_cells(to_do)
    gpus = torch.cuda.device_count()
    workers = options.workers or (gpus or cpus)
    threads = options.cpus_per_cell or max(1, cpus // workers)
    # Ray counts in ten-thousandths; rounded down, so that all workers' shares fit.
    share = min(1.0, int(10_000 * gpus / workers) / 10_000)
    conditions = _conditions(options, spec, threads, share if options.gpus_per_cell is None else options.gpus_per_cell)
    return LocalExecutor(workers, conditions)


def _conditions(options: Namespace, spec: StudySpec, threads: int, gpus: float) -> Conditions:
    # How many threads a library may start at all is the user's to say.
    limit = os.environ.get("OMP_NUM_THREADS", "")
    threads = min(threads, int(limit)) if limit.isdigit() and int(limit) > 0 else threads
    storage = None if options.storage is None else os.path.abspath(options.storage)
    return Conditions(spec.name, revision(), threads, cpus=float(threads), gpus=gpus, storage=storage)


def _how_to_go_on(options: Namespace, cells: list[Cell], store: Store) -> str:
    """Returns what to say after Ctrl-C."""
    left = len(open_cells(cells, store.read()))
    smoke = ["--smoke"] if options.smoke else []
    results = ["--results", str(options.results)] if options.results else []
    again = shlex.join(["python", "-m", "studies", "run", options.study, *smoke, *results])
    return f"interrupted with {len(cells) - left} of {len(cells)} cells done; to go on: {again}"
