"""What a cell starts from: its task, and the trained network, which is trained once for all that need it."""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from torch import nn

from autocompress.aggregated import aggregated_task, train_aggregated
from autocompress.errors import InvalidInputError
from autocompress.task import Task, load_task
from autocompress.task.arrays import data_root
from autocompress.task.named_models import load_weights
from autocompress.training.reference import reference_network
from studies.spec import TaskSpec


def task_and_reference(spec: TaskSpec, seed: int, fold: int = 1) -> tuple[Task, nn.Module]:
    """Returns a task and its trained network; trained here, if nobody has it, while others wait for it.

    With a `fold` it is the aggregated task, with the test split of single inputs, and the network is trained for this
    cell alone.
    """
    task = load_task(spec.model, spec.data, seed=seed)
    if task.test is None:
        raise InvalidInputError(f"data {spec.data!r} has no test split, and a study reports on one")
    if spec.reference_epochs is not None:
        task.recipe = replace(task.recipe, reference_epochs=spec.reference_epochs)
    if fold > 1:
        network = train_aggregated(task, fold, seed=seed, progress=False)
        return replace(aggregated_task(task, fold, seed=seed), test=task.test), network
    if spec.weights is not None:
        model = task.make_model()
        load_weights(model, data_root() / spec.weights)
        return task, model
    with _only_one(f"{spec} {seed}"):
        model = reference_network(task, seed=seed, progress=False)[0]
    return task, model


@contextmanager
def _only_one(what: str) -> Iterator[None]:
    """Lets one process at a time in; the lock ends with the process."""
    folder = data_root() / "reference"
    folder.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(what.encode()).hexdigest()[:16]
    with (folder / f".{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
