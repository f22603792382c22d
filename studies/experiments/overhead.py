"""What compressing costs beside training for as many steps: processor seconds of whole runs, side by side.

    python -m studies.experiments.overhead run lenet5 digits 4KB --epochs 40
    python -m studies.experiments.overhead run resnet20 cifar10 20x --epochs 1 --weights resnet20_cifar10.safetensors
    python -m studies.experiments.overhead table

Three runs of one length in turn, in one process: training alone; training that also learns from the network as it was
given; and `compress`, with its projections, its files and its choice between them. One thread. A record is one line of
`studies/results/overhead.jsonl`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from autocompress.network.live_network import copy_network
from autocompress.training.losses import distillation_from
from autocompress.training.trainer import Trainer
from studies.design.cell import Cell
from studies.design.spec import TaskSpec
from studies.experiments import store
from studies.experiments.store import Row, add_record, load_records
from studies.records.machine import revision, versions
from studies.records.record import COMPRESSOR
from studies.running.compressing import compress_task
from studies.running.reference import make_reference, start_of

RECORDS = store.RESULTS / "overhead.jsonl"
TRAINING, DISTILLED, COMPRESSED = "training", "learning from the network", "compress"


def processor_seconds(run: Callable[[], Any]) -> float:
    """Returns what a run takes."""
    started = time.process_time()
    run()
    return time.process_time() - started


def measured(cell: Cell, repeats: int) -> Row:
    """Returns the record: medians of the three runs, and the ratios of the last to the others."""
    task, network = start_of(cell, make_reference(cell))
    device = torch.device("cpu")

    def train(distil: bool, epochs: int = cell.final_epochs) -> None:
        teacher = distillation_from(network, task.loss, device) if distil else None
        settings: dict[str, Any] = {"epochs": epochs, "loss": task.loss, "distillation": teacher}
        recipe = task.recipe.for_compression()
        Trainer(copy_network(network), task.train, recipe=recipe, device=device, progress=False, **settings).fit()

    runs = {
        TRAINING: lambda: train(False),
        DISTILLED: lambda: train(True),
        COMPRESSED: lambda: compress_task(task, network, cell.target, epochs=cell.final_epochs, device=device),
    }
    train(False, 1)  # what is made once in a process is no part of any of them
    rounds = [{name: processor_seconds(run) for name, run in runs.items()} for _ in range(repeats)]
    seconds = {name: median(each[name] for each in rounds) for name in runs}
    return {
        "task": cell.task.name,
        "target": cell.target,
        "epochs": cell.final_epochs,
        "repeats": repeats,
        "seconds": {name: round(each, 2) for name, each in seconds.items()},
        "over_training": round(seconds[COMPRESSED] / seconds[TRAINING], 3),
        "over_learning": round(seconds[COMPRESSED] / seconds[DISTILLED], 3),
        "revision": revision(),
        "versions": versions(),
    }


def table(records: Sequence[Row]) -> str:
    """Returns the Markdown table, one row per record."""
    return store.table([_row(record) for record in records], ("task",))


def _row(record: Row) -> dict[str, str]:
    seconds = {name: f"{each:.2f}" for name, each in record["seconds"].items()}
    known = {"task": f"{record['task']}, `{record['target']}`", "epochs": str(record["epochs"])}
    return known | seconds | {"over training": f"{record['over_training']:.2f}"}


def main() -> None:
    """Measures a case or prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    runner = actions.add_parser("run")
    for name in ("model", "data", "target"):
        runner.add_argument(name)
    runner.add_argument("--epochs", type=int, required=True)
    runner.add_argument("--weights", help="file of the reference's weights, in the data folder; default: trained")
    runner.add_argument("--repeats", type=int, default=1)
    for action in (runner, actions.add_parser("table")):
        action.add_argument("--records", type=Path, default=RECORDS)
    options = parser.parse_args()
    if options.action == "run":
        torch.set_num_threads(1)
        task = TaskSpec(options.model, options.data, options.weights)
        cell = Cell(task, COMPRESSOR, COMPRESSOR, options.target, seed=0, final_epochs=options.epochs)
        record = measured(cell, options.repeats)
        add_record(options.records, record)
        print(json.dumps(record), flush=True)
    print(table(load_records(options.records)))


if __name__ == "__main__":
    main()
