"""The compressor's own figures: runs the command line on each case, keeps the records, prints the table of the README.

    python -m studies.benchmarks.compression run lenet5-mnist-2KB --seed 0 --seed 1 --seed 2
    python -m studies.benchmarks.compression table

A record is the JSON object of `autocompress compress --json`, with the case, the command and the versions; it is added
as one line to `studies/results/compression.jsonl`.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

RECORDS = Path(__file__).parents[1] / "results" / "compression.jsonl"


@dataclass(frozen=True)
class Case:
    """One row of the table: what is compressed, to what, in how many epochs."""

    model: str
    data: str
    target: str
    epochs: int
    weights: str | None = None

    @property
    def name(self) -> str:
        """Name on the command line."""
        return f"{self.model}-{self.data}-{self.target.replace('weights', 'w').replace(':', '')}-{self.epochs}"


CASES = {
    case.name: case
    for case in (
        *(Case("lenet5", "digits", target, epochs) for target in ("4KB", "2KB") for epochs in (4, 40)),
        Case("lenet5", "digits", "4KB", 120),
        *(Case("lenet5", "mnist", "5KB", epochs) for epochs in (10, 40)),
        *(Case("lenet5", "mnist", "2KB", epochs) for epochs in (4, 60)),
        Case("lenet5", "mnist", "1720B", 60),
        Case("lenet5", "mnist", "1150B", 60),
        *(Case("lenet5", "mnist", target, 30) for target in ("weights:1975x", "weights:2120x")),
        Case("lenet5", "mnist", "weights-in-place:1975x", 30),
        *(Case("resnet20", "cifar10", "20x", epochs, weights="resnet20_cifar10.safetensors") for epochs in (1, 3, 10)),
        Case("resnet20", "cifar10", "40x", 10, weights="resnet20_cifar10.safetensors"),
    )
}


def run(case: Case, seed: int, weights_folder: Path) -> dict[str, Any]:
    """Returns the record of one run of the command line, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["compress", case.model, "--data", case.data, "--target", case.target, "--seed", str(seed)]
        command += ["--epochs", str(case.epochs), "--out", f"{folder}/net.safetensors", "--json", "--no-progress"]
        if case.weights:
            command += ["--weights", str(weights_folder / case.weights)]
        done = subprocess.run(
            [sys.executable, "-m", "autocompress", *command], stdout=subprocess.PIPE, text=True, check=True
        )
        written = Path(f"{folder}/net.safetensors").stat().st_size
    answer = json.loads(done.stdout)
    answer.pop("out", None)
    return {
        "case": case.name,
        "model": case.model,
        "data": case.data,
        "epochs": case.epochs,
        "weights": case.weights,
        "file_bytes_by_stat": written,
        "python": platform.python_version(),
        "torch": torch.__version__,
        **answer,
    }


def file_sizes(rows: list[dict[str, Any]]) -> str:
    """Returns the bytes of the files of some records, the smallest and the largest."""
    files = [row["file_bytes"] for row in rows]
    return f"{min(files):,}" if min(files) == max(files) else f"{min(files):,} to {max(files):,}"


def load_records(path: Path = RECORDS) -> list[dict[str, Any]]:
    """Returns all records, in the order they were made."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def table(records: list[dict[str, Any]]) -> str:
    """Returns the Markdown table: one row per case, mean and standard deviation over the seeds."""
    head = (
        "| network, data | target | epochs | seeds | file bytes | weight data | reference | compressed | difference |"
    )
    lines = [head, "|---|---|---|---|---|---|---|---|---|"]
    for case in CASES.values():
        rows = [record for record in records if record["case"] == case.name]
        if rows:
            lines.append(_row(case, rows))
    return "\n".join(lines)


def _row(case: Case, rows: list[dict[str, Any]]) -> str:
    if len({row["seed"] for row in rows}) != len(rows):
        raise ValueError(f"{case.name}: more than one record of a seed")
    accuracies = [100 * row["test_accuracy"] for row in rows]
    differences = [100 * (row["test_accuracy"] - row["reference_accuracy"]) for row in rows]
    reference = statistics.mean(100 * row["reference_accuracy"] for row in rows)
    factor = statistics.mean(_weight_data_factor(row) for row in rows)
    return (
        f"| {case.model}, {case.data} | `{case.target}` | {case.epochs} | {len(rows)} | {file_sizes(rows)} "
        f"| {factor:,.0f}x | {reference:.2f} % | {mean_and_deviation(accuracies)} % "
        f"| {statistics.mean(differences):+.2f} |"
    )


def _weight_data_factor(record: dict[str, Any]) -> float:
    """Returns 32 bits per compressible weight over the weight data, the literature's factor."""
    dense_bytes = float(sum(4 * math.prod(layer["shape"]) for layer in record["layers"]))
    return dense_bytes / float(record["weight_data_bytes"])


def mean_and_deviation(values: list[float]) -> str:
    """Returns the mean, and the standard deviation where there are several, with two decimals."""
    mean = f"{statistics.mean(values):.2f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.2f}"


def main() -> None:
    """Runs cases or prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    runner = actions.add_parser("run")
    runner.add_argument("case", choices=CASES, nargs="+")
    runner.add_argument("--seed", type=int, action="append")
    runner.add_argument("--weights-folder", type=Path, default=Path())
    actions.add_parser("table")
    options = parser.parse_args()
    if options.action == "table":
        print(table(load_records()))
        return
    for name in options.case:
        for seed in options.seed or [0]:
            record = run(CASES[name], seed, options.weights_folder)
            with RECORDS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            print(name, seed, record["file_bytes"], record["test_accuracy"], record["reference_accuracy"], flush=True)


if __name__ == "__main__":
    main()
