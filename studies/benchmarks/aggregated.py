"""Aggregated learning and its compression: fold 1 and 2, with and without the information penalty, at equal file size.

    python -m studies.benchmarks.aggregated run lenet5-digits-4KB --seed 0 --seed 1 --seed 2
    python -m studies.benchmarks.aggregated table

Each variant is trained from scratch by the task's recipe, in equal steps and rows per step, then compressed to the
target in equal steps, without the penalty. It is scored twice, as trained and as its file: with each input copied into
all places (replicated), and with the places shared by neighbours, each input computed once (batched). A record is one
line in `studies/results/aggregated.jsonl`. Nothing is chosen on the test split.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from autocompress.aggregated import AggregatedModel, Batched, Replicated, aggregated_task, train_aggregated
from autocompress.task import Task, load_task
from autocompress.training.batches import check_batches
from autocompress.training.evaluation import evaluate
from studies.benchmarks import compression
from studies.compressing import compress_task
from studies.measure import revision, versions

RECORDS = Path(__file__).parents[1] / "results" / "aggregated.jsonl"
# (fold, alpha); 0.3 is the published weight of the penalty
VARIANTS = ((1, 0.0), (1, 0.3), (2, 0.0), (2, 0.3))
PROTOCOLS: dict[str, Callable[[AggregatedModel], nn.Module]] = {"replicated": Replicated, "batched": Batched}


@dataclass(frozen=True)
class Case:
    """What is trained and compressed.

    Attributes:
        model, data, target: as on the command line.
        epochs: of the training; None = the recipe's.
        compress_epochs: of the compression; None = the recipe's.
        suffix: tells apart cases of one task and target.
    """

    model: str
    data: str
    target: str
    epochs: int | None = None
    compress_epochs: int | None = None
    suffix: str = ""

    @property
    def name(self) -> str:
        """Name on the command line."""
        return f"{self.model}-{self.data}-{self.target}{self.suffix}"


CASES = {
    case.name: case
    for case in (
        Case("lenet5", "digits", "4KB"),
        Case("lenet5", "digits", "4KB", epochs=2, compress_epochs=2, suffix="-quick"),
        Case("lenet5", "mnist", "5KB"),
        Case("resnet20", "cifar10", "20x"),
    )
}


def run(case: Case, fold: int, alpha: float, seed: int) -> dict[str, Any]:
    """Returns the record of one variant, trained and compressed in this process."""
    started = time.perf_counter()
    task = load_task(case.model, case.data, seed=seed)
    epochs = case.epochs or task.recipe.reference_epochs
    network = train_aggregated(task, fold, alpha=alpha, epochs=epochs, seed=seed, progress=False)
    joint = aggregated_task(task, fold, seed=seed)
    result = compress_task(joint, network, case.target, epochs=case.compress_epochs, seed=seed)
    assert isinstance(result.model, AggregatedModel)
    return {
        "case": case.name,
        "fold": fold,
        "alpha": alpha,
        "seed": seed,
        "training_steps": epochs * check_batches(task.train, "the training data"),
        "compression_steps": result.gradient_steps,
        "file_bytes": result.file_bytes,
        "dense": _scores(network, task),
        "file": _scores(result.model, task),
        "wall_seconds": time.perf_counter() - started,
        "device": result.device,
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "revision": revision(),
        "versions": versions(),
    }


def _scores(model: AggregatedModel, task: Task) -> dict[str, dict[str, float]]:
    """Returns {protocol: {split: accuracy}}, fractions of 1."""
    splits = {"validation": task.validation, "test": task.test}
    return {
        name: {
            split: evaluate(predictor(model), batches, loss=task.loss, metric=task.metric).metric
            for split, batches in splits.items()
            if batches is not None
        }
        for name, predictor in PROTOCOLS.items()
    }


def table(records: Sequence[dict[str, Any]]) -> str:
    """Returns the Markdown table of test accuracies: one row per case and variant, mean and deviation over the seeds.

    Raises:
        ValueError: there is more than one record of a case, variant and seed.
    """
    lines = [
        "| network, data, target | fold | alpha | seeds | steps | replicated | batched | file bytes "
        "| file, replicated | file, batched |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for case in CASES.values():
        for fold, alpha in VARIANTS:
            rows = [r for r in records if (r["case"], r["fold"], r["alpha"]) == (case.name, fold, alpha)]
            if len({row["seed"] for row in rows}) != len(rows):
                raise ValueError(f"{case.name}, fold {fold}, alpha {alpha}: more than one record of a seed")
            if rows:
                lines.append(_row(case, fold, alpha, rows))
    return "\n".join(lines)


def _row(case: Case, fold: int, alpha: float, rows: list[dict[str, Any]]) -> str:
    scores = [
        compression.mean_and_deviation([100 * row[state][protocol]["test"] for row in rows]) + " %"
        for state in ("dense", "file")
        for protocol in PROTOCOLS
    ]
    steps = ", ".join(sorted({f"{row['training_steps']:,} + {row['compression_steps']:,}" for row in rows}))
    cells = [f"{case.model}, {case.data}, `{case.target}`{case.suffix}", str(fold), f"{alpha:g}", str(len(rows)), steps]
    return "| " + " | ".join([*cells, *scores[:2], compression.file_sizes(rows), *scores[2:]]) + " |"


def main() -> None:
    """Runs cases, each in all variants that have no record yet, or prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    runner = actions.add_parser("run")
    runner.add_argument("case", choices=CASES)
    runner.add_argument("--seed", type=int, action="append")
    runner.add_argument("--records", type=Path, default=RECORDS)
    printer = actions.add_parser("table")
    printer.add_argument("--records", type=Path, default=RECORDS)
    options = parser.parse_args()
    records = compression.load_records(options.records) if options.records.exists() else []
    if options.action == "table":
        print(table(records))
        return
    done = {(record["case"], record["fold"], record["alpha"], record["seed"]) for record in records}
    for seed in options.seed or [0]:
        for fold, alpha in VARIANTS:
            if (options.case, fold, alpha, seed) in done:
                continue
            record = run(CASES[options.case], fold, alpha, seed)
            with options.records.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            scores = (record["dense"]["replicated"]["test"], record["file"]["replicated"]["test"])
            print(options.case, fold, alpha, seed, record["file_bytes"], *scores, flush=True)
    print(table(compression.load_records(options.records)))


if __name__ == "__main__":
    main()
