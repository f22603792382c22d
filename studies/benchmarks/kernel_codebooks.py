"""Codebooks of kernels: scalar codebooks only, kernels only, and both, each layer its own, at the same code bits.

    python -m studies.benchmarks.kernel_codebooks run lenet5-digits-codes:32x --kinds scalar --kinds both --seed 0
    python -m studies.benchmarks.kernel_codebooks run resnet20-cifar10-codes:32x --weights-folder FOLDER
    python -m studies.benchmarks.kernel_codebooks table

A record is the JSON object of `autocompress compress --json` with the case, the kinds, the git revision and the
versions; it is added as one line to `studies/results/kernel_codebooks.jsonl`. 32 bits over the factor is the number of
bits per weight, positions and codebooks in it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autocompress.constraints import codebook_choices
from autocompress.task import load_task
from autocompress.training.reference import starting_network
from studies.benchmarks.compression import file_sizes, load_records, mean_and_deviation
from studies.compressing import compress_task
from studies.measure import revision, versions

RECORDS = Path(__file__).parents[1] / "results" / "kernel_codebooks.jsonl"
KINDS = {
    "scalar": codebook_choices.SCALARS,
    "kernel": codebook_choices.KERNELS,
    "both": codebook_choices.SCALARS | codebook_choices.KERNELS,
}


@dataclass(frozen=True)
class Case:
    """What is compressed, to what, in how many epochs; of the weights file in the folder given, if any."""

    model: str
    data: str
    target: str
    epochs: int
    weights: str | None = None

    @property
    def name(self) -> str:
        """Name on the command line."""
        return f"{self.model}-{self.data}-{self.target}"


CASES = {
    case.name: case
    for case in (
        Case("lenet5", "digits", "codes:32x", 60),
        Case("lenet5", "digits", "codes:64x", 60),
        Case("lenet5", "digits", "codes:128x", 60),
        Case("resnet20", "cifar10", "codes:20x", 10, "resnet20_cifar10.safetensors"),
        Case("resnet20", "cifar10", "codes:32x", 10, "resnet20_cifar10.safetensors"),
    )
}


def run(case: Case, kinds: str, seed: int, weights_folder: Path, epochs: int | None = None) -> dict[str, Any]:
    """Returns the record of one run; sets the kinds in this process."""
    codebook_choices.KINDS = KINDS[kinds]
    task = load_task(case.model, case.data, seed=seed)
    weights = weights_folder / case.weights if case.weights else None
    network = starting_network(task, weights, seed=seed, device=None, progress=False)
    result = compress_task(task, network, case.target, test=task.test, epochs=epochs or case.epochs, seed=seed)
    return {
        "case": case.name,
        "kinds": kinds,
        "model": case.model,
        "data": case.data,
        "epochs": epochs or case.epochs,
        "weights": case.weights,
        "revision": revision(),
        "versions": versions(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        **result.to_json(),
        "history": [{key: entry[key] for key in ("step", "residual", "error")} for entry in result.history],
    }


def table(records: list[dict[str, Any]]) -> str:
    """Returns the Markdown table: one row per case and kinds, mean and standard deviation over the seeds.

    Raises:
        ValueError: more than one record of a case, kinds, number of epochs and seed.
    """
    lines = [
        "| network, data | target | epochs | codebooks | seeds | bits per weight | layers with kernels | error "
        "| file bytes | reference | compressed | difference |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for case in CASES.values():
        mine = [record for record in records if record["case"] == case.name]
        for epochs in sorted({record["epochs"] for record in mine}):
            for kinds in KINDS:
                rows = [record for record in mine if (record["epochs"], record["kinds"]) == (epochs, kinds)]
                if rows:
                    lines.append(_row(case, epochs, kinds, rows))
    return "\n".join(lines)


def _row(case: Case, epochs: int, kinds: str, rows: list[dict[str, Any]]) -> str:
    if len({row["seed"] for row in rows}) != len(rows):
        raise ValueError(f"{case.name}, {kinds}: more than one record of a seed")
    layers = [(sum(layer["kind"] == "kernel" for layer in row["layers"]), len(row["layers"])) for row in rows]
    weights = [sum(math.prod(layer["shape"]) for layer in row["layers"]) for row in rows]
    bits = statistics.mean(8 * row["code_bytes"] / count for row, count in zip(rows, weights, strict=True))
    error = statistics.mean(row["history"][-1]["error"] for row in rows)
    accuracies = [100 * row["test_accuracy"] for row in rows]
    reference = statistics.mean(100 * row["reference_accuracy"] for row in rows)
    return (
        f"| {case.model}, {case.data} | `{case.target}` | {epochs} | {kinds} | {len(rows)} | {bits:.3f} "
        f"| {statistics.mean(kernels for kernels, _ in layers):g} of {layers[0][1]} | {error:.4g} | {file_sizes(rows)} "
        f"| {reference:.2f} % | {mean_and_deviation(accuracies)} % | {statistics.mean(accuracies) - reference:+.2f} |"
    )


def main() -> None:
    """Runs cases, or prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    runner = actions.add_parser("run")
    runner.add_argument("case", choices=CASES, nargs="+")
    runner.add_argument("--kinds", choices=KINDS, action="append", help="repeatable; default: all three")
    runner.add_argument("--seed", type=int, action="append", help="repeatable; default: 0")
    runner.add_argument("--epochs", type=int, help="default: the case's")
    runner.add_argument("--weights-folder", type=Path, default=Path())
    for action in (runner, actions.add_parser("table")):
        action.add_argument("--records", type=Path, default=RECORDS)
    options = parser.parse_args()
    if options.action == "table":
        print(table(load_records(options.records)))
        return
    for name in options.case:
        for kinds in options.kinds or KINDS:
            for seed in options.seed or [0]:
                record = run(CASES[name], kinds, seed, options.weights_folder, options.epochs)
                with options.records.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(record) + "\n")
                print(
                    name, kinds, seed, record["code_bytes"], record["file_bytes"], record["test_accuracy"], flush=True
                )
    print(table(load_records(options.records)))


if __name__ == "__main__":
    main()
