"""The searches' own figures beside the compressor's: runs the command line on each case, keeps records, prints a table.

    python -m studies.benchmarks.searches run lenet5-digits-4KB --method optuna-tpe --seed 0 --seed 1
    python -m studies.benchmarks.searches table

A record is the JSON object of `python -m baselines search --json` or of `autocompress compress --json` (method
`compressor`), with the case, the git revision and the versions; it is added as one line to
`studies/results/searches.jsonl`. Of each trial it keeps what it scored and cost, not what was proposed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from studies.benchmarks import compression
from studies.measure import revision, versions
from studies.record import COMPRESSOR

RESULTS = Path(__file__).parents[1] / "results"
RECORDS = RESULTS / "searches.jsonl"
TRIAL_KEYS = ("number", "state", "accuracy", "size", "gradient_steps", "device_seconds", "node", "attempts")


@dataclass(frozen=True)
class Case:
    """What is searched, and how much each search may spend.

    Attributes:
        model, data, target, final_epochs: as on the command line; the compressor gets the final epochs.
        trials, trial_epochs: of a search.
        options: more options by method.
        suffix: tells apart cases of one task and target.
    """

    model: str
    data: str
    target: str
    final_epochs: int
    trials: int
    trial_epochs: int
    options: dict[str, tuple[str, ...]] = field(default_factory=dict)
    suffix: str = ""

    @property
    def name(self) -> str:
        """Name on the command line."""
        return f"{self.model}-{self.data}-{self.target}{self.suffix}"

    def command(self, method: str, seed: int, out: Path) -> list[str]:
        """Returns the command of one run."""
        task = [self.model, "--data", self.data, "--target", self.target, "--seed", str(seed), "--out", str(out)]
        task += ["--json", "--no-progress"]
        if method == COMPRESSOR:
            return ["-m", "autocompress", "compress", *task, "--epochs", str(self.final_epochs)]
        cost = ["--trials", str(self.trials), "--trial-epochs", str(self.trial_epochs)]
        more = self.options.get(method, ())
        return ["-m", "baselines", "search", method, *task, *cost, "--final-epochs", str(self.final_epochs), *more]


CASES = {
    case.name: case
    for case in (
        # as many steps for the trials as the compressor takes in all; Condensa's ten are longer
        Case(
            "lenet5",
            "digits",
            "4KB",
            final_epochs=60,
            trials=16,
            trial_epochs=4,
            options={"condensa": ("--trials", "10", "--trial-epochs", "6")},
        ),
        # three times as many, and no pruner, so that it is three times; halving spends as much on more trials
        Case(
            "lenet5",
            "mnist",
            "5KB",
            final_epochs=40,
            trials=30,
            trial_epochs=4,
            options={
                "optuna-tpe": ("--pruner", "none"),
                "ray-asha": ("--trials", "54", "--trial-epochs", "8"),
                "condensa": ("--trials", "10", "--trial-epochs", "12"),
            },
        ),
        Case(
            "lenet5",
            "mnist",
            "5KB",
            final_epochs=40,
            trials=100,
            trial_epochs=4,
            options={
                "optuna-tpe": ("--pruner", "none"),
                "ray-asha": ("--trials", "180", "--trial-epochs", "8", "--gpus-per-trial", "0.25", "--workers", "4"),
            },
            suffix="-10x",
        ),
    )
}


def run(case: Case, method: str, seed: int) -> dict[str, Any]:
    """Returns the record of one run of the command line, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "net.safetensors"
        command = case.command(method, seed, out)
        done = subprocess.run([sys.executable, *command], stdout=subprocess.PIPE, text=True, check=True)
        written = out.stat().st_size
    answer = json.loads(done.stdout)
    answer.pop("out", None)
    trials = [{key: trial[key] for key in TRIAL_KEYS} for trial in answer.pop("trials", [])]
    return {
        "case": case.name,
        "final_epochs": case.final_epochs,
        "command": " ".join(word for word in command if word != str(out)),
        "revision": revision(),
        "versions": versions(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "file_bytes_by_stat": written,
        "search_gradient_steps": 0,
        "search_device_seconds": 0.0,
        **answer,
        "method": method,
        "trials": trials,
    }


def load_records() -> list[dict[str, Any]]:
    """Returns all records, in the order they were made."""
    return compression.load_records(RECORDS)


def table(records: list[dict[str, Any]]) -> str:
    """Returns the Markdown table: one row per case and method, mean and standard deviation over the seeds.

    Raises:
        ValueError: there is more than one record of a case, method and seed.
    """
    lines = [
        "| network, data, target | method | seeds | file bytes | validation | test "
        "| difference | search steps | trials |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for case in CASES.values():
        mine = [record for record in records if record["case"] == case.name]
        for method in dict.fromkeys(record["method"] for record in mine):
            lines.append(_row(case, method, [record for record in mine if record["method"] == method]))
    return "\n".join(lines)


def _row(case: Case, method: str, rows: list[dict[str, Any]]) -> str:
    if len({row["seed"] for row in rows}) != len(rows):
        raise ValueError(f"{case.name}, {method}: more than one record of a seed")
    difference = statistics.mean(100 * (row["test_accuracy"] - row["reference_accuracy"]) for row in rows)
    steps = statistics.mean(row["search_gradient_steps"] / row["gradient_steps"] for row in rows)
    trials = statistics.mean(len(row["trials"]) for row in rows)
    return (
        f"| {case.model}, {case.data}, `{case.target}` | {method} | {len(rows)} | {compression.file_sizes(rows)} "
        f"| {_mean(rows, 'validation_accuracy')} % | {_mean(rows, 'test_accuracy')} % | {difference:+.2f} "
        f"| {steps:.1f}x | {trials:.0f} |"
    )


def _mean(rows: list[dict[str, Any]], key: str) -> str:
    return compression.mean_and_deviation([100 * row[key] for row in rows])


def main() -> None:
    """Runs cases or prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    runner = actions.add_parser("run")
    runner.add_argument("case", choices=CASES)
    runner.add_argument("--method", action="append", required=True, help=f"{COMPRESSOR} or a baseline; repeatable")
    runner.add_argument("--seed", type=int, action="append")
    runner.add_argument("--records", type=Path, default=RECORDS)
    actions.add_parser("table")
    options = parser.parse_args()
    if options.action == "table":
        print(table(load_records()))
        return
    for method in options.method:
        for seed in options.seed or [0]:
            record = run(CASES[options.case], method, seed)
            with options.records.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            scores = record["file_bytes"], record["validation_accuracy"], record["test_accuracy"]
            print(options.case, method, seed, *scores, record["search_gradient_steps"], flush=True)


if __name__ == "__main__":
    main()
