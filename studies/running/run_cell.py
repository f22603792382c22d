"""From a cell to its record: search, final training, one look at the test split."""

from __future__ import annotations

import time
import traceback
from collections import Counter
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autocompress.codec.size_report import size_report
from autocompress.network.live_network import copy_network
from autocompress.solver.result import Result
from autocompress.task import Task, load_task
from autocompress.training.aggregated import AggregatedModel, Batched, Replicated
from autocompress.training.batches import check_batches
from autocompress.training.evaluation import Evaluation, evaluate
from baselines.interface import SearchOutcome, SearchSettings, Trial
from baselines.search import best_of, search, train_best
from studies.design.cell import Cell, solver_constants
from studies.records.machine import device_name, hardware, peak_memory_bytes, versions
from studies.records.record import COMPRESSOR, Record, pack
from studies.records.resources import resources_of
from studies.running.compressing import compress_task
from studies.running.conditions import Conditions, Found
from studies.running.kept_search import forget_search, storage_of
from studies.running.reference import digest_of, reference_of, start_of

SIZES = ("file_bytes", "entropy_bytes", "weight_data_bytes", "code_bytes", "original_bytes")


def run_cell(cell: Cell, conditions: Conditions) -> Record:
    """Returns the record of a cell, which may be that of a failure; its reference is made where the study has none.

    Raises:
        KeyboardInterrupt: Ctrl-C; there is nothing to record.
    """
    begun = time.perf_counter()
    try:
        torch.set_num_threads(conditions.threads)
        reference = reference_of(cell, Path(conditions.folder))
    except Exception:  # a failure is a result, too
        return failed(cell, conditions, traceback.format_exc(), _now(), time.perf_counter() - begun)
    return finish_cell(cell, conditions, reference, search_cell(cell, conditions, reference))


def search_cell(cell: Cell, conditions: Conditions, reference: bytes) -> Found:
    """Returns what the search of a cell found, or its failure; for the compressor nothing, at once."""
    if cell.method == COMPRESSOR:
        return Found()
    started = time.perf_counter()
    try:
        torch.set_num_threads(conditions.threads)
        return _search(cell, conditions, reference)
    except Exception:  # the one place where any failure is a result
        forget_search(cell, conditions.storage)  # to go on with it would end alike
        return Found(error=traceback.format_exc(), wall_seconds=time.perf_counter() - started)


def finish_cell(cell: Cell, conditions: Conditions, reference: bytes, found: Found) -> Record:
    """Returns the record of a cell whose search is done."""
    started, begun = _now(), time.perf_counter()
    try:
        torch.set_num_threads(conditions.threads)
        if found.error is None:
            return _finish(cell, conditions, reference, found, started)
        error = found.error
    except Exception:  # as above
        error = traceback.format_exc()
    return failed(cell, conditions, error, started, found.wall_seconds + time.perf_counter() - begun)


def failed(cell: Cell, conditions: Conditions, error: str, started: str, wall_seconds: float) -> Record:
    """Returns the record of a cell that came to nothing."""
    return Record(
        **_head(cell, conditions, started),
        state="failed",
        device=device_name("cuda" if torch.cuda.is_available() else "cpu"),
        wall_seconds=wall_seconds,
        error=error,
    )


def _search(cell: Cell, conditions: Conditions, reference: bytes) -> Found:
    task, network = start_of(cell, reference)
    started = time.perf_counter()
    storage, begun = storage_of(cell, conditions)
    settings = SearchSettings(
        trials=cell.trials,
        seed=cell.seed,
        storage=storage,
        resume=begun,
        workers=cell.workers,
        progress=False,
        ray_address=conditions.ray_address if cell.uses_ray else None,
        cpus_per_trial=conditions.cpus,
        gpus_per_trial=conditions.gpus,
        max_gradient_steps=_most_steps(cell, task),
    )
    outcome = search(
        cell.method,
        task,
        network,
        target=cell.target,
        space=cell.space,
        settings=settings,
        trial_epochs=cell.trial_epochs,
        pruner=cell.pruner,
    )
    if outcome.interrupted:
        raise KeyboardInterrupt
    best = best_of(outcome)
    return Found(
        best.values,
        outcome.gradient_steps,
        outcome.device_seconds,
        time.perf_counter() - started,
        _anytime(outcome),
        [trial.to_json() for trial in outcome.trials],
        file=best.file,
    )


def _most_steps(cell: Cell, task: Task) -> int:
    """Returns what the search of a cell may spend: what was announced, and one whole trial at least."""
    epochs = max(cell.epochs - cell.final_epochs, float(cell.trial_epochs))
    return round(epochs * check_batches(task.train, "the training data"))


def _finish(cell: Cell, conditions: Conditions, shipped: bytes, found: Found, started: str) -> Record:
    task, reference = start_of(cell, shipped)
    begun = time.perf_counter()
    if cell.method == COMPRESSOR:
        constants = solver_constants(cell.constants)
        result = compress_task(
            task, reference, cell.target, epochs=cell.final_epochs, seed=cell.seed, constants=constants
        )
    else:
        result = _trained(cell, task, reference, found)
    assert result.wall_seconds is not None
    before, after = (_test(network, task) for network in (copy_network(reference), result.model))
    reference_loss, loss = (_validation_loss(network, task) for network in (copy_network(reference), result.model))
    states = Counter(trial["state"] for trial in found.trials)
    sizes = size_report(result.state, result.data, result.model)
    written = sizes.to_json()
    return Record(
        **_head(cell, conditions, started),
        state="finished",
        device=device_name(str(result.device)),
        wall_seconds=found.wall_seconds + time.perf_counter() - begun,
        reference_accuracy=before.metric,
        test_accuracy=after.metric,
        # Without a test split that is what both were asked.
        reference_validation_accuracy=result.reference_accuracy,
        validation_accuracy=result.validation_accuracy,
        reference_correct=pack((before.scores > 0.5).numpy()),
        correct=pack((after.scores > 0.5).numpy()),
        examples=len(after.scores),
        reference_hash=digest_of(shipped),
        reference_loss=reference_loss,
        validation_loss=loss,
        **{name: written[name] for name in SIZES},
        layers=written["layers"],
        parts={name: round(size, 1) for name, size in (sizes.parts | {"overhead": sizes.overhead_bytes}).items()},
        gradient_steps=result.gradient_steps,
        search_gradient_steps=found.gradient_steps,
        device_seconds=found.device_seconds + result.wall_seconds,
        peak_memory_bytes=peak_memory_bytes(),
        curve=[list(point) for point in result.curve],
        anytime=found.anytime,
        history=result.history,
        trials=dict(states),
        search=found.trials,
        plan=found.values,
        scores=_replicated(reference, result.model, task) if cell.aggregated else {},
        resources=_resources(cell, result.model) if cell.resources else {},
    )


def _trained(cell: Cell, task: Task, reference: nn.Module, found: Found) -> Result:
    # Without the test split: it is looked at once, at the end, for all methods alike.
    best = Trial(0, "complete", found.values, None, 0, 0, 0.0, file=found.file)
    return train_best(
        cell.method,
        task,
        reference,
        best,
        target=cell.target,
        space=cell.space,
        seed=cell.seed,
        epochs=cell.final_epochs,
        progress=False,
        look_at_test=False,
    )


def _test(network: nn.Module, task: Task) -> Evaluation:
    assert task.test is not None
    single = Batched(network) if isinstance(network, AggregatedModel) else network
    return evaluate(single, task.test, loss=task.loss, metric=task.metric)


def _validation_loss(network: nn.Module, task: Task) -> float:
    return evaluate(network, task.validation, loss=task.loss, metric=task.metric).loss


def _replicated(reference: nn.Module, network: nn.Module, task: Task) -> dict[str, float]:
    """Returns what two aggregated networks score with the same input in all places."""
    named = {"replicated reference": reference, "replicated": network}
    assert task.test is not None
    return {
        name: evaluate(Replicated(each), task.test).metric
        for name, each in named.items()
        if isinstance(each, AggregatedModel)
    }


def _resources(cell: Cell, network: nn.Module) -> dict[str, float]:
    single = load_task(cell.task.model, cell.task.data, device="cpu")
    return resources_of(network, single.make_model(), single.input_example)


def _anytime(outcome: SearchOutcome) -> list[list[float]]:
    """Returns (steps so far, best so far) after each trial; only a trial that came to its end can be the best."""
    points: list[list[float]] = []
    steps, best = 0, None
    for trial in outcome.trials:
        steps += trial.gradient_steps
        if trial.state == "complete" and trial.accuracy is not None:
            best = trial.accuracy if best is None else max(best, trial.accuracy)
        if best is not None:
            points.append([steps, best])
    return points


def _head(cell: Cell, conditions: Conditions, started: str) -> dict[str, Any]:
    """Returns what every record says of its cell."""
    task, method, target, seed = cell.key
    return {
        "study": conditions.study,
        "spec_hash": cell.hash,
        "task": task,
        "method": method,
        "target": target,
        "seed": seed,
        "revision": conditions.revision,
        "versions": versions(),
        "hardware": hardware(),
        "cell": cell.to_json(),
        "constants": asdict(solver_constants(cell.constants)) if cell.method == COMPRESSOR else {},
        "threads": conditions.threads,
        "started": started,
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
