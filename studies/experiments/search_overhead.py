"""What a search costs beside its trials, by how many there are: own processor time a trial, bytes written a trial.

No trial trains anything here. Of Optuna the whole loop is measured (claim, proposal at random, reports, end) in a
storage in memory; of Ray what this package does for each event that Ray Tune tells of. Both are cut into fifths: a cost
that grows with the number of trials before shows as a rise from the first to the last.

    python -m studies.experiments.search_overhead [--trials 10000]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from ray.tune.experiment import Trial as RayTrial

from autocompress.codec.atomic_write import write_whole
from baselines.interface import Evaluation, Progress, Report, SearchSettings, Values, go_on
from baselines.optuna_search import OptunaSearcher
from baselines.ray_search.callback import Recorder
from baselines.ray_search.records import SearchFolder
from studies.experiments.ray_scaling import SleepSpace

RESULT = Path(__file__).parent.parent / "results" / "search_overhead.json"
EPOCHS, LAYERS, FIFTHS = 5, 22, 5
PLAN = {f"layer{i}.weight": {"keep_fraction": 0.0625, "codebook": 8} for i in range(LAYERS)}


@dataclass
class Nothing:
    """An objective that does nothing; notes the processor time at each call.

    Attributes:
        times: seconds, at the beginning of each evaluation.
    """

    epochs: int = EPOCHS
    space: SleepSpace = field(default_factory=SleepSpace)
    identity: dict[str, Any] = field(default_factory=lambda: {"task": "nothing"})
    times: list[float] = field(default_factory=list)

    def __call__(self, values: Values, report: Report = go_on, state: dict[str, Any] | None = None) -> Evaluation:
        self.times.append(time.process_time())
        for epoch in range(1, EPOCHS + 1):
            report(Progress(epoch, 0.5, 10 * epoch, 0.0, dict, 0.5))
        return Evaluation(0.5, 5000, 10 * EPOCHS, 0.0, ((10, 0.5),) * EPOCHS, PLAN, loss=0.5)


def by_fifths(times: Sequence[float]) -> list[float]:
    """Returns the milliseconds a trial in each fifth of a search, given the time at the beginning of each trial."""
    size = (len(times) - 1) // FIFTHS
    return [round(1000 * (times[(i + 1) * size] - times[i * size]) / size, 2) for i in range(FIFTHS)]


def optuna_overhead(trials: int) -> list[float]:
    """Returns the milliseconds a trial of the loop of an Optuna search."""
    objective = Nothing()
    OptunaSearcher("random", "none").search(objective, SearchSettings(trials, progress=False))
    return by_fifths(objective.times)


def ray_overhead(trials: int) -> tuple[list[float], float]:
    """Returns (milliseconds a trial of what a driver does with Ray Tune's events, bytes a trial in its records)."""
    values = {f"{name}.{kind}": 0.0625 for name in PLAN for kind in ("keep_fraction", "bits")}
    last = Nothing()(values)
    told = json.dumps({**vars(last), "file": ""})
    times = []
    with tempfile.TemporaryDirectory() as name:
        folder = SearchFolder(Path(name))
        folder.open({}, resume=False)
        recorder = Recorder(folder, {}, 2, lambda trial: None)
        for number in range(trials):
            times.append(time.process_time())
            config = {"proposal": {"number": number, "values": values}}
            trial = cast(RayTrial, SimpleNamespace(trial_id=str(number), config=config))
            recorder.on_trial_start(0, [], trial)
            for epoch in range(1, EPOCHS + 1):
                result: dict[str, Any] = {
                    "epoch": epoch,
                    "accuracy": 0.5,
                    "loss": 0.5,
                    "score": -0.5,
                    "gradient_steps": 10 * epoch,
                }
                result |= {"part": str(number), "from_scratch": True, "node": "0" * 56, "device_seconds": 1.0}
                result |= {"own_seconds": 0.0, "evaluation": told if epoch == EPOCHS else ""}
                recorder.on_trial_result(0, [], trial, result)
            recorder.on_trial_complete(0, [], trial)
        return by_fifths(times), (Path(name) / "trials.jsonl").stat().st_size / trials


def main() -> None:
    """Measures, prints and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10_000)
    trials = parser.parse_args().trials
    ray, size = ray_overhead(trials)
    record = {
        "trials": trials,
        "optuna_milliseconds_per_trial_by_fifths": optuna_overhead(trials),
        "ray_milliseconds_per_trial_by_fifths": ray,
        "ray_record_bytes_per_trial": round(size),
    }
    write_whole(RESULT, f"{json.dumps(record, indent=1)}\n".encode())
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
