"""Several workers of Ray Train beside one process: examples per second, and what came of the same batches.

    python -m studies.experiments.ray_train run --workers 2
    python -m studies.experiments.ray_train table

ResNet-20 on some images of CIFAR-10 to 20x, from trained weights in the data folder; one process, and then workers on a
Ray of this machine that each take their part of the same batches. Examples per second are those between the first and
the last step of the run, projections and scores on the validation data included. A record is one line of
`studies/results/ray_train.jsonl`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import autocompress as ac
from autocompress.task import load_task
from autocompress.task.arrays import data_root
from autocompress.task.named_models import load_weights
from autocompress.training.batches import TensorBatches
from studies.experiments import store
from studies.experiments.store import Row, add_record, load_records
from studies.records.machine import revision, versions

RECORDS = store.RESULTS / "ray_train.jsonl"
TARGET = "20x"


class Clock(ac.Callback):
    """Writes down when each step of the first rank was done."""

    def __init__(self, path: str) -> None:
        self.path = path

    def on_step(self, trainer: Any) -> None:
        if trainer.ranks.is_first:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(f"{time.time()}\n")


def measured(workers: int, images: int, epochs: int) -> Row:
    """Returns the record: one process, then the workers."""
    task = load_task("resnet20", "cifar10", device="cpu")
    model = task.make_model()
    load_weights(model, data_root() / "resnet20_cifar10.safetensors")
    whole = task.train
    assert isinstance(whole, TensorBatches)
    settings: dict[str, Any] = {"batch_size": whole.batch_size, "shuffle": True, "augment": whole.augment}
    train = TensorBatches(whole.inputs[:images], whole.targets[:images], transform=whole.transform, **settings)
    found: dict[str, Any] = {}
    for name, several in (("one process", None), ("workers", workers)):
        with tempfile.TemporaryDirectory() as folder:
            clock = Clock(os.path.join(folder, "steps"))
            started = time.time()
            result = ac.compress(
                model, train=train, val=task.validation, test=task.test, target=TARGET, epochs=epochs,
                recipe=task.recipe, callbacks=[clock], workers=several,
            )  # fmt: skip
            times = [float(line) for line in Path(clock.path).read_text(encoding="utf-8").splitlines()]
        found[name] = {
            "examples_per_second": round((len(times) - 1) * whole.batch_size / (times[-1] - times[0]), 1),
            "seconds": round(time.time() - started, 1),
            "file_bytes": result.file_bytes,
            "file": hashlib.sha256(result.data).hexdigest(),
            "test_accuracy": result.test_accuracy,
            "reference_accuracy": result.reference_accuracy,
        }
    return {
        "task": task.name, "target": TARGET, "workers": workers, "images": images, "epochs": epochs,
        "batch_size": whole.batch_size, "processors": os.cpu_count(), "load": os.getloadavg()[2], "runs": found,
        "revision": revision(), "versions": versions(),
    }  # fmt: skip


def table(records: Sequence[Row]) -> str:
    """Returns the Markdown table, two rows per record."""
    rows = []
    for record in records:
        for name, run in record["runs"].items():
            rows.append(
                {
                    "run": f"{record['workers']} workers" if name == "workers" else name,
                    "examples per second": f"{run['examples_per_second']:,.0f}",
                    "whole run": f"{run['seconds']:,.0f} s",
                    "file": f"{run['file_bytes']:,} bytes",
                    "test accuracy": f"{100 * run['test_accuracy']:.2f} %",
                }
            )
    return store.table(rows, ("run",))


def main() -> None:
    """Measures a number of workers or prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    runner = actions.add_parser("run")
    runner.add_argument("--workers", type=int, default=2)
    runner.add_argument("--images", type=int, default=4096)
    runner.add_argument("--epochs", type=int, default=2)
    for action in (runner, actions.add_parser("table")):
        action.add_argument("--records", type=Path, default=RECORDS)
    options = parser.parse_args()
    if options.action == "run":
        torch.set_num_threads(1)
        add_record(options.records, measured(options.workers, options.images, options.epochs))
        print(json.dumps(load_records(options.records)[-1]), flush=True)
    print(table(load_records(options.records)))


if __name__ == "__main__":
    main()
