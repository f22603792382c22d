"""Is a quality constraint satisfied, and what does it save? `drop:` targets on digits beside bisection over file sizes.

    python -m studies.experiments.quality_constraints run
    python -m studies.experiments.quality_constraints run --way bisection --seed 0 --seed 1 --seed 2
    python -m studies.experiments.quality_constraints table

The reference is trained on the training split alone. The validation split is cut in two halves: one steers the run, the
other, which steered nothing, checks the constraint; then they change places, so that every validation image checks once
(cross-fitting). Bisection looks for the smallest `FileSize` run that satisfies the same constraint on the same half, to
within 10 % of its size; it takes seven runs or so, each 4/7 as long as the one run with a constraint, which so has a
quarter of its steps. A record is one line of `studies/results/accuracy_target.jsonl`: one seed, one half, one way of
searching, where "promise" stands for the run with the constraint.

A constraint has held where the other half's fall is at most the allowed one plus 1.645 of its standard errors: a
network that satisfies it with equality exceeds that in one check of twenty.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autocompress import Result
from autocompress.constraints.constraint import Network
from autocompress.constraints.file_writer import smallest_file
from autocompress.network.selection import original_bytes, select
from autocompress.solver.constants import DEFAULTS
from autocompress.targets import AccuracyDrop
from autocompress.task import Task, load_task
from autocompress.training.batches import TensorBatches
from autocompress.training.evaluation import evaluate
from autocompress.training.reference import reference_network
from studies.experiments import store
from studies.experiments.store import add_record, grouped, load_records
from studies.records.machine import revision, versions
from studies.report.tables import file_range
from studies.running.compressing import compress_task

RECORDS = store.RESULTS / "accuracy_target.jsonl"
WAYS = ("promise", "bisection")
BISECTION_EPOCHS = 4 / 7  # of a run of bisection, as a part of the run with a constraint
RESOLUTION = 1.1  # bisection ends when its bounds are within this factor
HALVES_SEED = 20180610  # never to be changed: records on other halves could not be compared
ONE_SIDED = 1.645  # standard errors: what a constraint satisfied with equality exceeds in one of twenty checks


def halves(batches: TensorBatches) -> list[TensorBatches]:
    """Returns the examples of a split in two parts of equal size, the same ones every time."""
    order = torch.randperm(len(batches.inputs), generator=torch.Generator().manual_seed(HALVES_SEED))
    middle = len(order) // 2
    parts = [order[:middle].sort().values, order[middle:].sort().values]
    return [
        TensorBatches(
            batches.inputs[part],
            batches.targets[part],
            batch_size=batches.batch_size,
            transform=batches.transform,
        )
        for part in parts
    ]


class Bench:
    """One reference network, compressed with one half of the validation split to steer.

    Attributes:
        task: network and data.
        reference: trained on the training split alone.
        steering: the half that decides.
        check: the other half.
        options: of the command line: epochs, drop, device.
    """

    def __init__(self, seed: int, half: int, options: argparse.Namespace) -> None:
        self.seed, self.half, self.options = seed, half, options
        self.task: Task = load_task(options.model, options.data, device=options.device, seed=seed)
        self.reference, _ = reference_network(self.task, seed=seed, device=options.device, progress=False)
        assert isinstance(self.task.validation, TensorBatches)
        parts = halves(self.task.validation)
        self.steering, self.check = parts[half], parts[1 - half]

    def compressed(self, target: str, epochs: int) -> Result:
        own = {"val": self.steering, "device": self.options.device}
        return compress_task(self.task, self.reference, target, epochs=epochs, seed=self.seed, **own)

    def right(self, model: nn.Module, batches: Any) -> list[int]:
        """Returns for every example 1 where the network is right, else 0."""
        outcome = evaluate(model, batches, device=self.options.device)
        return [int(score) for score in outcome.scores]

    def record(self, way: str, model: nn.Module, file_bytes: int) -> dict[str, Any]:
        """Returns what is written of one search's outcome."""
        scores = {
            f"{name}_{split}": self.right(network, batches)
            for name, network in (("reference", self.reference), ("compressed", model))
            for split, batches in (("steering", self.steering), ("check", self.check), ("test", self.task.test))
        }
        return {
            "task": self.task.name,
            "way": way,
            "drop": self.options.drop,
            "seed": self.seed,
            "half": self.half,
            "epochs": self.options.epochs,
            "file_bytes": file_bytes,
            **scores,
            "revision": revision(),
            "versions": versions(),
            "threads": os.environ.get("OMP_NUM_THREADS"),
        }

    def promise(self) -> dict[str, Any]:
        started = time.perf_counter()
        result = self.compressed(f"drop:{self.options.drop}", self.options.epochs)
        assert result.promise is not None
        record = self.record("promise", result.model, result.file_bytes)
        record |= {"kept": result.promise["kept"], "tried": result.promise["tried"]}
        return record | {"gradient_steps": result.gradient_steps, "seconds": time.perf_counter() - started}

    def bisection(self) -> dict[str, Any]:
        """Returns the record of a bisection over file sizes, on their logarithm."""
        started = time.perf_counter()
        constraint = AccuracyDrop(float(self.options.drop))
        before = statistics.mean(self.right(self.reference, self.steering))
        low = float(smallest_file(Network(self.reference, select(self.reference))))
        high = DEFAULTS.path_ceiling * original_bytes(self.reference)
        tried, steps = [], 0
        best: Result | None = None
        while high / low > RESOLUTION or best is None:
            size = math.sqrt(low * high)
            result = self.compressed(f"{int(size)}B", max(1, round(BISECTION_EPOCHS * self.options.epochs)))
            steps += result.gradient_steps
            score = statistics.mean(self.right(result.model, self.steering))
            satisfied = constraint.margin(score, before) >= 0
            tried.append([result.file_bytes, score])
            low, high = (low, size) if satisfied else (size, high)
            best = result if satisfied else best
            if best is None and high / low <= RESOLUTION:
                break  # not satisfied up to the largest size
        kept = best is not None
        best = best or result
        record = self.record("bisection", best.model, best.file_bytes) | {"kept": kept, "tried": tried}
        return record | {"gradient_steps": steps, "seconds": time.perf_counter() - started}


def fall(rows: Sequence[dict[str, Any]], split: str) -> tuple[float, float]:
    """Returns the fall of accuracy over the examples of some records, and its standard error, both in points.

    The error is that of the mean of paired differences: networks mostly err on the same examples.
    """
    differences = [
        before - after
        for row in rows
        for before, after in zip(row[f"reference_{split}"], row[f"compressed_{split}"], strict=True)
    ]
    return 100 * statistics.mean(differences), 100 * statistics.stdev(differences) / math.sqrt(len(differences))


def table(records: Sequence[dict[str, Any]]) -> str:
    """Returns the Markdown table, one row per seed, both halves pooled, and what it says in a few lines.

    Raises:
        ValueError: there is more than one record of a seed, half and way.
    """
    lines: list[dict[str, str]] = []
    outcomes: list[tuple[bool, bool]] = []
    ratios: list[float] = []
    for case, mine in grouped(records, ("task", "drop", "epochs", "seed"), ("half", "way")).items():
        rows = {row["half"]: row for row in mine if row["way"] == "promise"}
        others = {row["half"]: row for row in mine if row["way"] == "bisection"}
        if len(rows) < 2:
            continue
        line, outcome = _row(case, list(rows.values()))
        pairs = [(rows[half], others[half]) for half in rows if half in others and others[half]["kept"]]
        ratios += [row["file_bytes"] / other["file_bytes"] for row, other in pairs]
        lines.append(line | _compared(pairs))
        outcomes.append(outcome)
    return "\n".join([store.table(lines, ("network, constraint, epochs", "held")), "", *_summary(outcomes, ratios)])


def _row(case: tuple[Any, ...], rows: list[dict[str, Any]]) -> tuple[dict[str, str], tuple[bool, bool]]:
    """Returns the left part of a seed's line, and whether it held within one and within 1.645 standard errors."""
    task, drop, epochs, seed = case
    (steering, _), (check, error), (test, _) = (fall(rows, split) for split in ("steering", "check", "test"))
    held = (check <= float(drop) + error, check <= float(drop) + ONE_SIDED * error)
    word = "yes" if held[0] else "within 1.645 errors" if held[1] else "no"
    return {
        "network, constraint, epochs": f"{task}, `drop:{drop}`, {epochs}",
        "seed": str(seed),
        "fall, steering half": f"{steering:+.2f}",
        "fall, checking half": f"{check:+.2f} ± {error:.2f}",
        "held": word + ("" if all(row["kept"] for row in rows) else ", said not satisfied"),
        "fall, test": f"{test:+.2f}",
        "bytes": file_range(min(row["file_bytes"] for row in rows), max(row["file_bytes"] for row in rows)),
    }, held


def _compared(pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, str]:
    """Returns the right part of a seed's line."""
    if not pairs:
        return {"of bisection": "", "its steps": ""}
    sizes = " and ".join(f"{row['file_bytes'] / other['file_bytes']:.2f}x" for row, other in pairs)
    steps = statistics.mean(row["gradient_steps"] / other["gradient_steps"] for row, other in pairs)
    return {"of bisection": sizes, "its steps": f"{steps:.2f}x"}


def _summary(outcomes: list[tuple[bool, bool]], ratios: list[float]) -> list[str]:
    """Returns the claims in words."""
    lines = []
    if outcomes:
        one, more = (sum(outcome[index] for outcome in outcomes) for index in (0, 1))
        lines.append(
            f"The constraint held within one standard error in {one} of {len(outcomes)} seeds, within 1.645 in {more}."
        )
    if ratios:
        mean = math.exp(statistics.mean(map(math.log, ratios)))
        near = sum(ratio <= RESOLUTION for ratio in ratios)
        lines.append(
            f"Size as a part of what bisection finds: geometric mean {mean:.2f}, "
            f"median {statistics.median(ratios):.2f}, at most {RESOLUTION} in {near} of {len(ratios)} runs."
        )
    return lines


def main() -> None:
    """Runs seeds or prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    runner = actions.add_parser("run")
    runner.add_argument("--seed", type=int, action="append")
    runner.add_argument("--half", type=int, choices=(0, 1), action="append")
    runner.add_argument("--way", choices=WAYS, action="append", help="repeatable; default: promise")
    # One of the 180 images of half a validation split is 0.56 points.
    runner.add_argument("--drop", default="1", help="points of validation accuracy")
    runner.add_argument("--model", default="lenet5")
    runner.add_argument("--data", default="digits")
    runner.add_argument("--epochs", type=int, default=70)
    runner.add_argument("--device", default="cpu")
    for action in (runner, actions.add_parser("table")):
        action.add_argument("--records", type=Path, default=RECORDS)
    options = parser.parse_args()
    if options.action == "run":
        logging.basicConfig(level=logging.WARNING, format="%(message)s")
        for seed in options.seed or range(10):
            for half in options.half or (0, 1):
                bench = Bench(seed, half, options)
                for way in options.way or WAYS[:1]:
                    record = getattr(bench, way)()
                    add_record(options.records, record)
                    print(way, seed, half, record["file_bytes"], f"kept={record['kept']}", record["tried"], flush=True)
    print(table(load_records(options.records)))


if __name__ == "__main__":
    main()
