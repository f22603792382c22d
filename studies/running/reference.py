"""What a cell starts from: its task, and the trained network, one for all cells of a task and seed.

It is trained once, kept as `references/NAME.safetensors` beside the records, and shipped from there to the cells, on
whatever machine they run. Its digest is in each record, so that a report can tell whether all had the same.
"""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import nn

from autocompress.codec.atomic_write import write_whole
from autocompress.errors import InvalidInputError
from autocompress.network.live_network import named_tensors
from autocompress.task import Task, load_task
from autocompress.task.arrays import data_root
from autocompress.task.named_models import load_weights
from autocompress.training.aggregated import AggregatedModel, aggregated_task, train_aggregated
from autocompress.training.reference import reference_network
from studies.design.cell import Cell

FOLDER = "references"


def task_of(cell: Cell) -> Task:
    """Returns the task of single inputs.

    Raises:
        InvalidInputError: it has no test split.
    """
    spec = cell.task
    task = load_task(spec.model, spec.data, seed=cell.seed)
    if task.test is None:
        raise InvalidInputError(f"data {spec.data!r} has no test split, and a study reports on one")
    if spec.reference_epochs is not None:
        task.recipe = replace(task.recipe, reference_epochs=spec.reference_epochs)
    return task


def make_reference(cell: Cell) -> bytes:
    """Returns the tensors of a cell's uncompressed network; trained here, unless this machine has it from before."""
    task, spec = task_of(cell), cell.task
    if cell.aggregated:
        model: nn.Module = train_aggregated(task, cell.fold, alpha=cell.alpha, seed=cell.seed, progress=False)
    elif spec.weights is not None:
        model = task.make_model()
        load_weights(model, data_root() / spec.weights)
    else:
        with _only_one(data_root() / "reference", f"{spec} {cell.seed}"):
            model = reference_network(task, seed=cell.seed, progress=False)[0]
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in named_tensors(model).items()}
    return bytes(save(tensors))


def reference_path(cell: Cell, folder: Path) -> Path:
    """Returns where a study keeps a cell's uncompressed network; `folder` is the study's."""
    what = [*asdict(cell.task).values(), cell.seed, cell.fold, cell.alpha]
    digest = hashlib.sha256(repr(what).encode()).hexdigest()[:12]
    return folder / FOLDER / f"seed{cell.seed}-{digest}.safetensors"


def reference_of(cell: Cell, folder: Path) -> bytes:
    """Returns the tensors of a cell's uncompressed network, made where the study has none, while others wait for it."""
    path = reference_path(cell, folder)
    if not path.exists():
        with _only_one(path.parent, path.name):
            if not path.exists():
                write_whole(path, make_reference(cell))
    return path.read_bytes()


def start_of(cell: Cell, reference: bytes) -> tuple[Task, nn.Module]:
    """Returns (the task that a cell compresses on, its uncompressed network).

    Of a fold it is the aggregated task, with the test split of single inputs.
    """
    task = task_of(cell)
    model: nn.Module = task.make_model()
    if cell.aggregated:
        model = AggregatedModel(model, cell.fold)
        task = replace(aggregated_task(task, cell.fold, seed=cell.seed), test=task.test)
    tensors, own = load(reference), named_tensors(model)
    if set(tensors) != set(own):
        raise InvalidInputError(f"the reference of {cell} is of another network: {sorted(set(tensors) ^ set(own))}")
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(tensors[name])
    return task, model


def digest_of(reference: bytes) -> str:
    """Returns what tells references apart in records."""
    return hashlib.sha256(reference).hexdigest()[:16]


@contextmanager
def _only_one(folder: Path, what: str) -> Iterator[None]:
    """Lets one process at a time in; the lock ends with the process."""
    folder.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(what.encode()).hexdigest()[:16]
    with (folder / f".{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
