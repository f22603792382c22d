"""Energy targets against what people do first, on the digits: runs the cases, keeps the records, prints the table.

    python -m studies.experiments.energy run --seed 0 --seed 1 --seed 2
    python -m studies.experiments.energy table

At 7 to 40 % of the dense energy, under the analytic model (inputs and outputs alone take 5.9 %): single weights against
one magnitude threshold for the whole network, whole channels against the same share of each group, both chosen at once
and trained on under the mask for as many steps as the compressor takes. A record is one line of
`studies/results/energy.jsonl`.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autocompress.energy.channel_graph import ChannelGraph, shrink
from autocompress.energy.network_energy import network_energy
from autocompress.targets import Energy
from autocompress.task import Task, load_task
from autocompress.training.checkpoint import Callback
from autocompress.training.evaluation import evaluate
from autocompress.training.reference import reference_network
from autocompress.training.trainer import Trainer
from studies.experiments import store
from studies.experiments.store import accuracies, add_record, grouped, load_records
from studies.records.resources import count_macs, median_seconds
from studies.running.compressing import compress_task

RECORDS = store.RESULTS / "energy.jsonl"
METHODS = ("energy", "magnitude", "energy-channels", "uniform-channels")
PERCENTS = (7, 10, 20, 40)
EPOCHS = 60
LATENCY_BATCH = 64


class Masked(Callback):
    """Keeps pruned weights at zero while the others are trained."""

    def __init__(self, model: nn.Module, masks: Mapping[str, Tensor]) -> None:
        self.pairs = [(model.get_parameter(name), mask) for name, mask in masks.items()]
        self.apply()

    @torch.no_grad()
    def apply(self) -> None:
        for parameter, mask in self.pairs:
            parameter.mul_(mask)

    def on_step(self, trainer: Trainer) -> None:
        self.apply()


def magnitude_masks(model: nn.Module, example: Any, fraction: float) -> tuple[dict[str, Tensor], float]:
    """Returns masks of the weights above one threshold, the lowest within an energy, and the energy's fraction."""
    energy = network_energy(model, example)
    weights = {name: model.get_parameter(name).detach().abs() for name in energy.weights}
    every = torch.cat([w.flatten() for w in weights.values()]).sort(descending=True).values
    low, high = 0, every.numel()  # kept weights: the first number holds, the second does not
    while high - low > 1:
        middle = (low + high) // 2
        counts = {name: int((w >= every[middle]).sum()) for name, w in weights.items()}
        low, high = (middle, high) if energy.used(counts) <= fraction * energy.dense else (low, middle)
    masks = {name: w >= every[low] for name, w in weights.items()}
    return masks, energy.used({name: int(mask.sum()) for name, mask in masks.items()}) / energy.dense


def uniform_masks(model: nn.Module, example: Any, fraction: float) -> tuple[dict[str, Tensor], float]:
    """Returns masks of the same share of each group's channels, those of largest norm, and the energy's fraction."""
    graph = ChannelGraph(model, example)
    energy = graph.fitted_energy()
    shares = np.linspace(1.0, 0.0, 2001)[:, None]
    widths = np.maximum(1, np.floor(shares * np.array(energy.channels))).astype(np.int64)
    widths = widths[int(np.argmax(energy.of(widths) <= fraction * energy.dense))]
    keep = []
    for saliency, width in zip(graph.saliencies(dict(model.named_parameters())), widths, strict=True):
        kept = torch.zeros(len(saliency), dtype=torch.bool)
        kept[torch.from_numpy(saliency).argsort(descending=True)[: int(width)]] = True
        keep.append(kept)
    return graph.masks(model, keep), float(energy.of(widths)) / energy.dense


def run(task: Task, reference: nn.Module, method: str, percent: int, seed: int, epochs: int) -> dict[str, Any]:
    """Returns the record of one method at one energy."""
    fraction, example = percent / 100, task.input_example
    if method in ("energy", "energy-channels"):
        target = Energy(fraction, channels=method == "energy-channels")
        result = compress_task(task, reference, target, epochs=epochs, seed=seed)
        assert result.energy is not None
        model, used = result.model, result.energy.fraction
    else:
        model = copy.deepcopy(reference)
        choose = magnitude_masks if method == "magnitude" else uniform_masks
        masks, used = choose(model, example, fraction)
        trainer = Trainer(
            model, task.train, recipe=task.recipe.for_compression(), epochs=epochs, loss=task.loss, seed=seed
        )
        trainer.callbacks.append(Masked(model, {n: m.to(trainer.device) for n, m in masks.items()}))
        trainer.fit()
    record = {"method": method, "percent": percent, "seed": seed, "epochs": epochs, "energy_fraction": used}
    record |= {"reference_accuracy": _accuracy(task, reference), "test_accuracy": _accuracy(task, model)}
    record |= {"torch": torch.__version__, "threads": torch.get_num_threads()}
    return record | (_speed(reference, model.cpu(), example) if "channels" in method else {})


def _accuracy(task: Task, model: nn.Module) -> float:
    assert task.test is not None
    return evaluate(model, task.test, loss=task.loss, metric=task.metric).metric


def _speed(reference: nn.Module, model: nn.Module, example: Tensor) -> dict[str, Any]:
    """Returns multiplications and median seconds before and after the channels were removed physically, on the CPU."""
    smaller, dense = shrink(model, example), copy.deepcopy(reference).cpu().eval()
    batch = torch.cat([example] * LATENCY_BATCH)
    before, after = median_seconds([dense, smaller], batch)
    return {
        "dense_macs": count_macs(dense, example),
        "macs": count_macs(smaller, example),
        "dense_seconds": before,
        "seconds": after,
    }


def table(records: list[dict[str, Any]]) -> str:
    """Returns the Markdown table: one row per method and energy, mean and standard deviation over the seeds."""
    groups = grouped(records, ("percent", "method"))
    order = [(percent, method) for percent in PERCENTS for method in METHODS if (percent, method) in groups]
    return store.table([_row(*key, groups[key]) for key in order], ("energy", "method"))


def _row(percent: int, method: str, rows: list[dict[str, Any]]) -> dict[str, str]:
    shares = {"MACs": "", "latency": ""}
    if all("macs" in row for row in rows):
        shares["MACs"] = f"{statistics.mean(row['macs'] / row['dense_macs'] for row in rows):.2f}x"
        shares["latency"] = f"{statistics.mean(row['seconds'] / row['dense_seconds'] for row in rows):.2f}x"
    used = statistics.mean(100 * row["energy_fraction"] for row in rows)
    known = {"energy": f"{percent} %", "method": method, "seeds": str(len(rows)), "energy used": f"{used:.1f} %"}
    return known | accuracies(rows) | shares


def main() -> None:
    """Runs cases or prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    runner = actions.add_parser("run")
    runner.add_argument("--method", action="append", choices=METHODS)
    runner.add_argument("--percent", action="append", type=int, choices=PERCENTS)
    runner.add_argument("--seed", type=int, action="append")
    runner.add_argument("--epochs", type=int, default=EPOCHS)
    runner.add_argument("--smoke", action="store_true", help="an epoch each, to see that all of it works")
    for action in (runner, actions.add_parser("table")):
        action.add_argument("--records", type=Path, default=RECORDS)
    options = parser.parse_args()
    if options.action == "run":
        _run_all(options)
    print(table(load_records(options.records)))


def _run_all(options: argparse.Namespace) -> None:
    for seed in options.seed or [0]:
        task = load_task("lenet5", "digits", seed=seed)
        if options.smoke:
            task.recipe = dataclasses.replace(task.recipe, reference_epochs=1)
        reference = reference_network(task, seed=seed, progress=False)[0]
        for percent in options.percent or PERCENTS:
            for method in options.method or METHODS:
                record = run(task, reference, method, percent, seed, 1 if options.smoke else options.epochs)
                add_record(options.records, record)
                print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
