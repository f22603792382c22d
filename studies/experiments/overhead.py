"""What compressing costs beside training: CPU seconds of whole runs of the same length, with and without.

Three runs take turns in one process, so that what else the machine does meets them alike: training, training with
distillation from the network as it was given, and `compress`, from its checks to its file. The ratios are medians over
the turns. One thread; a reference network that is not there yet is trained first and not counted.

    python -m studies.experiments.overhead [--cases lenet5-digits lenet5-mnist resnet20-cifar10] [--repeats 3]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autocompress import compress
from autocompress.codec.atomic_write import write_whole
from autocompress.network.live_network import copy_network
from autocompress.task import Task, load_task
from autocompress.training.losses import distillation_from
from autocompress.training.reference import reference_network
from autocompress.training.trainer import Trainer
from studies.experiments.store import RESULTS, table
from studies.records.machine import hardware, revision, versions

RESULT = RESULTS / "overhead.json"
RUNS = ("training", "distillation", "compression")
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    """A network on a data set, its target and the length of the runs."""

    model: str
    data: str
    target: str
    epochs: int

    @property
    def name(self) -> str:
        return f"{self.model}-{self.data}"


CASES = (
    Case("lenet5", "digits", "2KB", 40),
    Case("lenet5", "mnist", "2KB", 10),
    Case("resnet20", "cifar10", "54KB", 1),
)


def runs_of(case: Case, task: Task, network: nn.Module) -> dict[str, Callable[[], object]]:
    """Returns the three runs by name."""
    settings: dict[str, Any] = {"epochs": case.epochs, "loss": task.loss, "device": CPU, "seed": 0, "progress": False}

    def trained(distilled: bool) -> object:
        taught = distillation_from(network, task.loss, CPU) if distilled else None
        model, recipe = copy_network(network, device=CPU), task.recipe.for_compression()
        return Trainer(model, task.train, recipe=recipe, distillation=taught, **settings).fit()

    def compressed() -> object:
        own: dict[str, Any] = {"metric": task.metric, "recipe": task.recipe, "target": case.target}
        return compress(network, train=task.train, val=task.validation, **own, **settings)

    return dict(zip(RUNS, (lambda: trained(False), lambda: trained(True), compressed), strict=True))


def measure(case: Case, repeats: int) -> dict[str, list[float]]:
    """Returns the CPU seconds of each run in each turn."""
    task = load_task(case.model, case.data, seed=0)
    network, _ = reference_network(task, seed=0, progress=False)
    torch.optim.SGD(network.parameters(), lr=0.0)  # imports what the first optimizer of a process imports
    seconds: dict[str, list[float]] = {name: [] for name in RUNS}
    runs = runs_of(case, task, network)
    for turn in range(repeats):
        for name in (*RUNS[turn % 3 :], *RUNS[: turn % 3]):
            began = time.process_time()
            runs[name]()
            seconds[name].append(round(time.process_time() - began, 2))
            print(f"{case.name}, turn {turn + 1} of {repeats}: {name} {seconds[name][-1]:.1f} s", flush=True)
    return seconds


def ratio(seconds: dict[str, list[float]], run: str, to: str) -> float:
    """Returns the median over the turns of the CPU time of one run over that of another."""
    return round(statistics.median(a / b for a, b in zip(seconds[run], seconds[to], strict=True)), 3)


def record_of(case: Case, seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Returns what is written of a case."""
    ratios = {
        "compression / training": ratio(seconds, "compression", "training"),
        "compression / distillation": ratio(seconds, "compression", "distillation"),
        "distillation / training": ratio(seconds, "distillation", "training"),
    }
    machine = {"revision": revision(), "versions": versions(), **hardware(), "threads": torch.get_num_threads()}
    return {"case": case.name, "target": case.target, "epochs": case.epochs, "seconds": seconds, **ratios} | machine


def shown(records: Sequence[dict[str, Any]]) -> str:
    """Returns the records as a table."""
    rows = [
        {
            "case": f"{record['case']}, {record['target']}, {record['epochs']} epochs",
            **{f"{run}, s": f"{statistics.median(record['seconds'][run]):.1f}" for run in RUNS},
            **{name: f"{value:.2f}" for name, value in record.items() if " / " in name},
        }
        for record in records
    ]
    return table(rows, ["case"])


def main() -> None:
    """Measures, writes the records of the cases, those of others kept, and prints all as a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=[case.name for case in CASES], default=["lenet5-digits"])
    parser.add_argument("--epochs", type=int, help="of each run; default: the case's own")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    torch.set_num_threads(1)
    records = {each["case"]: each for each in json.loads(given.out.read_text())} if given.out.exists() else {}
    for case in CASES:
        if case.name in given.cases:
            case = Case(case.model, case.data, case.target, given.epochs or case.epochs)
            records[case.name] = record_of(case, measure(case, given.repeats))
            write_whole(given.out, f"{json.dumps(list(records.values()), indent=1)}\n".encode())
    print(shown(list(records.values())))


if __name__ == "__main__":
    main()
