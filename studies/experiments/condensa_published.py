"""Condensa's published settings, as published, and the compressor beside them at the same size or energy.

    python -m studies.experiments.condensa_published run lenet5-mnist-memory
    python -m studies.experiments.condensa_published run alexnet-cifar10-memory --reference-epochs 15 --steps 6000
    python -m studies.experiments.condensa_published table

Without `--steps` a schedule is run in full: 66,000 gradient steps of LeNet-5, 129,000 of AlexNet, in batches of 128.
After an interruption the same command goes on after the last C step. The compressor starts from the same reference and
gets the recipe's epochs, or as many examples as Condensa if these are fewer. Beside a setting that saves memory it is
asked for the same weight data (bits times nonzeros, the count of the paper) and, as "compressor, file", for a file of
the bytes that Condensa's 16-bit nonzeros and their positions take at the least; beside one that removes channels, for
the same energy by whole channels. A record is one line of `studies/results/condensa.jsonl`. Nothing is chosen on the
test split.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.constraints.constraint import Network
from autocompress.energy.channel_graph import ChannelGraph
from autocompress.network.selection import select
from autocompress.targets import Energy, FileSize, Target, parse_target
from autocompress.task import Task, load_task
from autocompress.training.batches import TensorBatches, default_device
from autocompress.training.evaluation import evaluate
from autocompress.training.reference import reference_network
from baselines.condensa.configurations import CONFIGURATIONS, Configuration
from baselines.condensa.schemes import Compose
from baselines.condensa.solver import Solver
from studies.experiments import store
from studies.experiments.store import accuracies, add_record, grouped, load_records
from studies.records.machine import device_name, revision, versions
from studies.records.resources import resources_of
from studies.running.compressing import compress_task

RECORDS = store.RESULTS / "condensa.jsonl"
HALF_BITS, FLOAT_BITS = 16, 32
FILE = "compressor, file"  # the compressor at the size of a file, everything in it


class Bench:
    """One setting on one seed.

    Attributes:
        setting: as published.
        task: with batches of the setting's size.
        reference: the trained network.
        steps: gradient steps of Condensa.
    """

    def __init__(self, name: str, seed: int, options: argparse.Namespace) -> None:
        self.name, self.seed, self.options = name, seed, options
        self.setting: Configuration = CONFIGURATIONS[name]
        self.device = default_device(options.device)
        self.task: Task = load_task(self.setting.model, self.setting.data, device=self.device, seed=seed)
        if options.reference_epochs:
            self.task.recipe = replace(self.task.recipe, reference_epochs=options.reference_epochs)
        self.reference, _ = reference_network(self.task, seed=seed, device=self.device)
        self.steps = options.steps or sum(self.setting.schedule.lengths)

    @property
    def run(self) -> tuple[str, int, int]:
        """What its records have in common with those of other seeds."""
        return self.name, self.task.recipe.reference_epochs, self.steps

    @property
    def halves(self) -> bool:
        """Whether what is left is written in 16 bits."""
        return isinstance(self.setting.scheme(self.setting.density), Compose)

    def condensa(self) -> dict[str, Any]:
        """Returns what the L-C solver makes of the reference."""
        train = copy.copy(self.task.train)
        assert isinstance(train, TensorBatches)
        train.batch_size = self.setting.batch_size
        model = copy.deepcopy(self.reference).to(self.device)
        solver = Solver(
            Network(model, select(model, self.setting.ignore)),
            self.setting.scheme(self.setting.density),
            self.setting.schedule,
            self.steps,
            train=train,
            loss=self.task.loss,
            validation_loss=lambda network: self._evaluate(network, self.task.validation).loss,
            device=self.device,
            seed=self.seed,
            biases=not self.halves,  # a channel goes with its bias, or it cannot be removed
        )
        records: Path = self.options.records
        checkpoint = records.with_name(f"{records.stem}-{self.name}-{self.seed}.checkpoint")
        started, before = time.perf_counter(), solver.steps

        def after() -> None:
            left = (time.perf_counter() - started) / (solver.steps - before) * (self.steps - solver.steps)
            print(f"{solver.steps:,} of {self.steps:,} steps, {left / 60:.0f} minutes left", flush=True)

        solver.fit(after, checkpoint)
        checkpoint.unlink(missing_ok=True)
        if not self.halves:
            zero_unfed(model, self.task.input_example)
        return self._measured(model, self.steps, started) | {"batch_size": self.setting.batch_size}

    @property
    def methods(self) -> tuple[str, ...]:
        """Condensa first: its record says what the compressor is to meet."""
        return ("condensa", "compressor", FILE) if self.halves else ("condensa", "compressor")

    def compressor(self, condensa: dict[str, Any], method: str) -> dict[str, Any]:
        """Returns what the compressor makes of it at Condensa's weight data or file size, or at its energy."""
        recipe, train = self.task.recipe, self.task.train
        assert isinstance(train, TensorBatches)
        target: Target = Energy(Fraction(math.ceil(1000 * condensa["energy"]), 1000), channels=True)
        if self.halves:
            target = parse_target(f"weights:{condensa['weight_data_bits']}bits")
        if method == FILE:
            target = FileSize(int(_least_bytes(condensa)))
        epochs = min(recipe.compress_epochs, math.ceil(self.steps * self.setting.batch_size / len(train.inputs)))
        started = time.perf_counter()
        result = compress_task(
            self.task, self.reference, target, epochs=epochs, seed=self.seed, device=self.device, progress=True
        )
        sizes = {"target": str(target), "file_bytes": result.file_bytes, "batch_size": recipe.batch_size}
        measured = self._measured(result.model, result.gradient_steps, started) | sizes
        if self.halves:
            measured["weight_data_bits"] = round(8 * result.to_json()["weight_data_bytes"])
        return measured

    def _measured(self, model: nn.Module, steps: int, started: float) -> dict[str, Any]:
        weights = [weight.detach() for _, weight in select(model).weights]
        nonzeros = [int(weight.count_nonzero()) for weight in weights]
        assert self.task.test is not None
        return {
            "gradient_steps": steps,
            "wall_seconds": time.perf_counter() - started,
            "weights": sum(weight.numel() for weight in weights),
            "nonzeros": sum(nonzeros),
            "weight_data_bits": (HALF_BITS if self.halves else FLOAT_BITS) * sum(nonzeros),
            "position_bits": sum(map(position_bits, weights, nonzeros)),
            "validation_accuracy": self._evaluate(model, self.task.validation).metric,
            "test_accuracy": self._evaluate(model, self.task.test).metric,
            **resources_of(model, self.reference, self.task.input_example.cpu()),
        }

    def _evaluate(self, model: nn.Module, batches: Any) -> Any:
        return evaluate(model, batches, loss=self.task.loss, metric=self.task.metric, device=self.device)

    def record(self, method: str, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Returns the record of a method, which may depend on Condensa's of the same run among those there are."""
        common = {
            "case": self.name,
            "seed": self.seed,
            "method": method,
            "density": self.setting.density,
            "steps": self.steps,
            "reference_epochs": self.task.recipe.reference_epochs,
            "reference_accuracy": self._evaluate(self.reference, self.task.test).metric,
            "device": device_name(str(self.device)),
            "threads": os.environ.get("OMP_NUM_THREADS"),
            "revision": revision(),
            "versions": versions(),
        }
        if method == "condensa":
            return common | self.condensa()
        (condensa,) = [row for row in records if self.is_of(row) and row["method"] == "condensa"]
        return common | self.compressor(condensa, method)

    def is_of(self, record: dict[str, Any]) -> bool:
        return (*_run(record), record["seed"]) == (*self.run, self.seed)


def zero_unfed(model: nn.Module, example: Tensor) -> None:
    """Zeroes the weights that take a channel whose filters or neurons are gone, so that it can be removed."""
    graph = ChannelGraph(model, example)
    given = [torch.zeros(group.channels, dtype=torch.bool) for group in graph.groups]
    for group, keep in zip(graph.groups, given, strict=True):
        for part in group.slices:
            if part.dim == 0:
                alive = model.get_parameter(part.weight).flatten(1).any(1).cpu()
                keep[part.channel[alive[part.index]]] = True
    for name, mask in graph.masks(model, given).items():
        model.get_parameter(name).data.mul_(mask)


def position_bits(weight: Tensor, nonzeros: int) -> float:
    """Returns n H(nonzeros / n), the ideal code length of where the nonzeros are."""
    n = weight.numel()
    parts = [nonzeros / n, 1 - nonzeros / n]
    return float(-n * sum(part * math.log2(part) for part in parts if part))


def _least_bytes(condensa: dict[str, Any]) -> float:
    """Returns the bytes of nonzeros and positions, without biases."""
    return float((condensa["weight_data_bits"] + condensa["position_bits"]) / 8)


RUN = ("case", "reference_epochs", "steps")  # what seeds are runs of


def table(records: Sequence[dict[str, Any]]) -> str:
    """Returns the Markdown table: one row per setting, length and method, mean and deviation over the seeds.

    Raises:
        ValueError: there is more than one record of a setting, length, method and seed.
    """
    rows = [_row(key[0], key[-1], rows) for key, rows in grouped(records, (*RUN, "method")).items()]
    return store.table(rows, ("setting", "method"))


def _run(record: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(record[key] for key in RUN)


def _row(case: str, method: str, rows: list[dict[str, Any]]) -> dict[str, str]:
    def mean(key: str) -> float:
        return float(statistics.mean(row[key] for row in rows))

    factor = statistics.mean(32 * row["weights"] / row["weight_data_bits"] for row in rows)
    # Condensa writes no file: what its 16-bit nonzeros and their positions take at the least
    least = method == "condensa"
    size = f"at least {statistics.mean(map(_least_bytes, rows)):,.0f}" if least else f"{mean('file_bytes'):,.0f}"
    return {
        "setting": case,
        "method": method,
        "seeds": str(len(rows)),
        "steps x batch": ", ".join(sorted({f"{row['gradient_steps']:,} x {row['batch_size']}" for row in rows})),
        **accuracies(rows),
        "nonzero": f"{100 * mean('nonzeros') / mean('weights'):.2f} %",
        "weight data": f"{factor:,.0f}x",
        "file bytes": size,
        **{name: f"{mean(key):.2f}x" for name, key in (("energy", "energy"), ("MACs", "macs"), ("latency", "latency"))},
    }


def main() -> None:
    """Runs settings that have no record yet, or prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    runner = actions.add_parser("run")
    runner.add_argument("case", choices=CONFIGURATIONS, nargs="+")
    runner.add_argument("--seed", type=int, action="append", help="repeatable; default: 0")
    runner.add_argument("--steps", type=int, help="of Condensa; default: as published")
    runner.add_argument("--reference-epochs", type=int, help="default: the recipe's")
    runner.add_argument("--device", help="default: CUDA where there is one")
    for action in (runner, actions.add_parser("table")):
        action.add_argument("--records", type=Path, default=RECORDS)
    options = parser.parse_args()
    records = load_records(options.records)
    if options.action == "run":
        for seed in options.seed or [0]:
            for name in options.case:
                bench = Bench(name, seed, options)
                for method in bench.methods:
                    if any(bench.is_of(row) and row["method"] == method for row in records):
                        print(f"{name}, seed {seed}, {method}: there is a record", flush=True)
                        continue
                    records.append(bench.record(method, records))
                    add_record(options.records, records[-1])
    print(table(records))


if __name__ == "__main__":
    main()
