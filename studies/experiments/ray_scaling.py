"""How the throughput of a Ray search grows with its workers, on trials that sleep in place of training.

One trial of each actor comes first and is not counted: it waits until all actors are up. The overhead is the time that
the code of `baselines` spends on a trial in the driver and in the actor, Ray's own time and the trial's left out.

    python -m studies.experiments.ray_scaling [--seconds 30] [--workers 1 2 4] [--trials-per-worker 4]
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

from autocompress.codec.atomic_write import write_whole
from baselines.interface import Evaluation, Parameter, Progress, Report, SearchSettings, Values, go_on
from baselines.ray_search import RayOptuna
from baselines.ray_search.records import History, SearchFolder

RESULT = Path(__file__).parent.parent / "results" / "ray_scaling.json"
BARRIER_SECONDS = 120.0
_is_warm = False  # of this process


@dataclass(frozen=True)
class SleepSpace:
    """As many numbers as a small network's plan has."""

    name: str = "sleep"
    parameters: tuple[Parameter, ...] = tuple(Parameter(f"keep_fraction_{i}", 0.01, 1.0, log=True) for i in range(8))

    @property
    def start(self) -> dict[str, float]:
        return {parameter.name: 0.1 for parameter in self.parameters}


@dataclass(frozen=True)
class Sleep:
    """An objective that sleeps.

    Attributes:
        seconds: of one evaluation.
        workers: actors that are waited for.
        barrier: a folder in which each of them leaves a file.
    """

    seconds: float
    workers: int
    barrier: str
    epochs: int = 5
    space: SleepSpace = field(default_factory=SleepSpace)

    @property
    def identity(self) -> dict[str, Any]:
        return {"seconds": self.seconds}

    def __call__(self, values: Values, report: Report = go_on, state: dict[str, Any] | None = None) -> Evaluation:
        global _is_warm
        counted, _is_warm = _is_warm, True
        begun = time.time()
        if not counted:
            self._wait_for_all()
        for epoch in range(1, self.epochs + 1):
            time.sleep(self.seconds / self.epochs if counted else 0.0)
            report(Progress(epoch, values["keep_fraction_0"], epoch, time.time() - begun, dict))
        ended = time.time()
        plan = {"counted": counted, "begun": begun, "ended": ended, "process": os.getpid()}
        return Evaluation(values["keep_fraction_0"], 1, self.epochs, ended - begun, plan=plan)

    def _wait_for_all(self) -> None:
        Path(self.barrier, str(os.getpid())).touch()
        deadline = time.monotonic() + BARRIER_SECONDS
        while len(os.listdir(self.barrier)) < self.workers and time.monotonic() < deadline:
            time.sleep(0.02)


def measure(workers: int, seconds: float, trials_per_worker: int) -> dict[str, Any]:
    """Returns what one search with so many workers took."""
    with tempfile.TemporaryDirectory() as barrier, tempfile.TemporaryDirectory() as storage:
        trials = workers * (trials_per_worker + 1)
        settings = SearchSettings(trials, workers=workers, storage=storage)
        RayOptuna().search(Sleep(seconds, workers, barrier), settings)
        histories = list(SearchFolder(Path(storage)).histories().values())
    plans = [history.evaluation["plan"] for history in histories]
    counted = [plan for plan in plans if plan["counted"]]
    all_up = max(plan["ended"] for plan in plans if not plan["counted"])
    elapsed = max(plan["ended"] for plan in counted) - all_up
    return {
        "workers": workers,
        "trials": len(counted),
        "actors": len({plan["process"] for plan in plans}),
        "seconds": elapsed,
        "trials_per_minute": 60 * len(counted) / elapsed,
        "own_milliseconds_per_trial": _own_milliseconds(histories),
    }


def _own_milliseconds(histories: Sequence[History]) -> dict[str, float]:
    """Returns the mean and the largest time of our own code."""
    own = [1000 * history.own_seconds for history in histories if history.evaluation["plan"]["counted"]]
    return {"mean": sum(own) / len(own), "largest": max(own)}


def main() -> None:
    """Measures, prints a table and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0, help="that a trial sleeps")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--trials-per-worker", type=int, default=4)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    print("workers  trials  actors  seconds  trials/min  of linear  own ms per trial (largest)")
    for workers in options.workers:
        row = measure(workers, options.seconds, options.trials_per_worker)
        single = (rows or [row])[0]
        row["of_linear"] = row["trials_per_minute"] / row["workers"] / (single["trials_per_minute"] / single["workers"])
        rows.append(row)
        own = row["own_milliseconds_per_trial"]
        print(
            f"{workers:7} {row['trials']:7} {row['actors']:7} {row['seconds']:8.1f} {row['trials_per_minute']:11.2f} "
            f"{row['of_linear']:10.3f} {own['mean']:10.2f} ({own['largest']:.2f})",
            flush=True,
        )
    result = {
        "what": "throughput of ray-optuna on trials that sleep, warm actors, logical CPUs",
        "sleep_seconds": options.seconds,
        "ray": ray.__version__,
        "runs": rows,
    }
    write_whole(options.out, f"{json.dumps(result, indent=1)}\n".encode())


if __name__ == "__main__":
    main()
