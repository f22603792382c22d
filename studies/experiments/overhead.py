"""What compressing costs beside training for as many steps: processor seconds of whole runs, side by side.

Three runs of one length in turn, in one process: training alone; training that also learns from the network as it was
given; and `compress`, with its projections, its files and its choice between them. One thread.

    python -m studies.experiments.overhead lenet5-digits 4KB --epochs 40
    python -m studies.experiments.overhead lenet5-mnist 5KB --epochs 10
    python -m studies.experiments.overhead resnet20-cifar10 20x --epochs 1 --weights resnet20_cifar10.safetensors
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from autocompress.codec.atomic_write import write_whole
from autocompress.network.live_network import copy_network
from autocompress.solver.compression import compress
from autocompress.task import load_task
from autocompress.task.arrays import data_root
from autocompress.task.named_models import load_weights
from autocompress.training.losses import distillation_from
from autocompress.training.reference import reference_network
from autocompress.training.trainer import Trainer

RESULT = Path(__file__).parent.parent / "results" / "overhead.json"


def processor_seconds(run: Callable[[], Any]) -> float:
    """Returns what a run takes."""
    started = time.process_time()
    run()
    return time.process_time() - started


def measured(task_name: str, target: str, epochs: int, weights: str | None, repeats: int) -> dict[str, Any]:
    """Returns the medians of the three runs and their ratios."""
    task = load_task(*task_name.split("-", 1), seed=0)
    if weights is None:
        network, _ = reference_network(task, seed=0, progress=False)
    else:
        network = task.make_model()
        load_weights(network, data_root() / weights)
    device = torch.device("cpu")
    recipe = task.recipe.for_compression()

    def train(distil: bool, epochs: int = epochs) -> None:
        teacher = distillation_from(network, task.loss, device) if distil else None
        settings: dict[str, Any] = {"recipe": recipe, "epochs": epochs, "loss": task.loss, "distillation": teacher}
        Trainer(copy_network(network), task.train, device=device, progress=False, **settings).fit()

    def compressed() -> None:
        given: dict[str, Any] = {"train": task.train, "val": task.validation, "loss": task.loss, "metric": task.metric}
        compress(network, target=target, epochs=epochs, recipe=recipe, device=device, progress=False, **given)

    runs = {"training": lambda: train(False), "learning from the network": lambda: train(True), "compress": compressed}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    train(False, 1)  # what is made once in a process is no part of any of them
    for _ in range(repeats):
        for name, run in runs.items():
            seconds[name].append(processor_seconds(run))
    medians = {name: median(each) for name, each in seconds.items()}
    return {
        "task": task_name,
        "target": target,
        "epochs": epochs,
        "repeats": repeats,
        "seconds": {name: round(each, 2) for name, each in medians.items()},
        "over_training": round(medians["compress"] / medians["training"], 3),
        "over_learning": round(medians["compress"] / medians["learning from the network"], 3),
    }


def main() -> None:
    """Measures, prints and adds to the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", help="MODEL-DATA")
    parser.add_argument("target")
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--weights", help="file of the reference's weights, in the data folder; default: trained")
    parser.add_argument("--repeats", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    row = measured(asked.task, asked.target, asked.epochs, asked.weights, asked.repeats)
    rows = json.loads(RESULT.read_text()) if RESULT.exists() else []
    same = ("task", "target", "epochs")
    rows = [each for each in rows if any(each[key] != row[key] for key in same)] + [row]
    write_whole(RESULT, f"{json.dumps(rows, indent=1)}\n".encode())
    print(json.dumps(row, indent=1))


if __name__ == "__main__":
    main()
