"""Kills of the real commands at random moments: the same result as undisturbed, nothing lost, nothing left behind."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from small_task import make_task, train_reference

TESTS = Path(__file__).parent
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
# Ends a command may have: done; Ctrl-C and SIGTERM as the commands say it, or before they are ready to.
ENDS = {0, 130, -signal.SIGINT, -signal.SIGTERM, -signal.SIGKILL}
STARTING = "Fatal Python error: init_"  # Python's own word for Ctrl-C before it reads a line of ours; its status is 1
SOON = 120  # seconds for processes to be gone
TASK = ["small_task:make_model", "--data", "small_task:loaders", "--weights", "dense.pt"]
STUDY = """
from studies.design.spec import StudySpec, TaskSpec
SPEC = StudySpec(
    "mine", [TaskSpec("small_task:make_model", "small_task:loaders", reference_epochs=30)],
    ["compressor", "random"], ["20x"], [0], budget=0.5, final_epochs=20, trial_epochs=2, description="Clusters",
)
"""


def result_of_study(folder: Path) -> Any:
    """Returns the records by cell without what differs from run to run."""
    found = {}
    for path in sorted(folder.glob("results/mine/records/*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        record["search"] = [without(trial, PER_ATTEMPT) for trial in record.get("search", [])]
        found[path.name] = without(record, {"search_gradient_steps", "anytime", "peak_memory_bytes"})
    return found


# What was spent on attempts that were killed is told.
PER_ATTEMPT = {"attempts", "gradient_steps"}


def without(value: Any, names: set[str]) -> Any:
    """Returns a part of a record without some keys of it, and without times at any depth."""
    if isinstance(value, dict):
        times = {"started", "wall_seconds", "device_seconds"}
        return {key: without(part, set()) for key, part in value.items() if key not in names | times}
    return [without(part, set()) for part in value] if isinstance(value, list) else value


def result_of_search(folder: Path) -> Any:
    """Returns the file and the trials without what is counted per attempt."""
    trials = json.loads((folder / "net.search.json").read_text(encoding="utf-8"))["trials"]
    kept = ("number", "values", "accuracy", "state")
    return (folder / "net.safetensors").read_bytes(), [{key: trial[key] for key in kept} for trial in trials]


@dataclass
class Command:
    """One of the commands, with the words that start it and go on with it.

    Attributes:
        words: after `python -m`.
        result: what has to be the same, from the folder it ran in.
    """

    words: list[str]
    result: Callable[[Path], Any]

    def start(self, folder: Path) -> subprocess.Popen[bytes]:
        """Returns the command in a process and session of its own; its messages are in `FOLDER.log`."""
        (folder / "study.py").write_text(STUDY, encoding="utf-8")
        with folder.with_suffix(".log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", *self.words],
                cwd=folder,
                env=os.environ
                | {
                    "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}",
                    "OMP_NUM_THREADS": "1",
                    "AUTOCOMPRESS_DATA": str(folder / "data"),
                    "TMPDIR": str(folder / "temporary"),
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )


OUT = ["--target", "600B", "--out", "net.safetensors"]
COMPRESS = Command(
    ["autocompress", "compress", *TASK, *OUT, "--epochs", "80", "--resume", "run"],
    lambda folder: (folder / "net.safetensors").read_bytes(),
)
SEARCH = Command(
    [
        "baselines",
        "search",
        "optuna-tpe",
        *TASK,
        *OUT,
        *["--trials", "12", "--trial-epochs", "4", "--final-epochs", "20", "--resume"],
    ],
    result_of_search,
)
STUDIES = Command(["studies", "run", "study.py", "--workers", "2"], result_of_study)


def files_of(folder: Path) -> set[str]:
    """Returns the files in a folder that are there to stay."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir())
    return {str(path) for path in paths if "__pycache__" not in path.parts}


def processes_of(folder: Path) -> list[int]:
    """Returns the living processes that were started in a folder, theirs included."""
    mark, found = f"AUTOCOMPRESS_DATA={folder / 'data'}".encode(), []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
        except OSError:
            continue
    return found


def new_folder(path: Path) -> Path:
    (path / "temporary").mkdir(parents=True)
    torch.save(train_reference(make_task()).state_dict(), path / "dense.pt")
    return path


@dataclass
class Kills:
    """Runs of one command, killed again and again until each ends by itself.

    Attributes:
        done: signals that met a running process.
        runs: commands that came to their end after kills.
    """

    command: Command
    folder: Path
    seed: int = 0
    done: Counter[str] = field(default_factory=Counter)
    runs: int = 0

    def __post_init__(self) -> None:
        """Runs the command undisturbed."""
        self.random = random.Random(self.seed)
        self.undisturbed = new_folder(self.folder / "undisturbed")
        began = time.monotonic()
        process = self.command.start(self.undisturbed)
        assert process.wait() == 0, self.log(self.undisturbed)
        self.seconds = time.monotonic() - began
        self.result, self.files = self.command.result(self.undisturbed), files_of(self.undisturbed)

    @staticmethod
    def log(folder: Path) -> str:
        return folder.with_suffix(".log").read_text(encoding="utf-8")

    def until(self, kills: int, per_run: int) -> None:
        """Kills so many processes, at most so many of one run, and looks at what becomes of each run."""
        while self.done.total() < kills:
            folder = new_folder(self.folder / f"killed-{self.runs}")
            for _ in range(min(per_run, kills - self.done.total())):
                if self.killed(folder) == 0:
                    break
            else:
                assert self.command.start(folder).wait() == 0, self.log(folder)
            self.runs += 1
            self.gone(folder)
            assert self.command.result(folder) == self.result, self.log(folder)
            assert files_of(folder) == self.files

    def killed(self, folder: Path) -> int:
        """Returns how the command ended, a signal having been sent to it at a random moment; 0 = it was done before."""
        said = len(self.log(folder)) if folder.with_suffix(".log").exists() else 0
        began, process = time.monotonic(), self.command.start(folder)
        number = SIGNALS[self.done.total() % len(SIGNALS)]
        try:
            end = process.wait(self.random.uniform(0, self.seconds))
        except subprocess.TimeoutExpired:
            process.send_signal(number)
        else:
            self.seconds = min(self.seconds, time.monotonic() - began)
            return end
        end = process.wait()
        starting = end == 1 and STARTING in self.log(folder)[said:]
        assert end in ENDS or starting, f"{number.name}: {self.log(folder)}"
        self.gone(folder)
        if end:
            self.done[number.name] += 1
        if number != signal.SIGKILL:
            left = [name for name in files_of(folder) if name.endswith((".part", ".tmp"))]
            assert not left, f"{number.name} left {left}"
        return end

    @staticmethod
    def gone(folder: Path) -> None:
        """Returns once no process of a run is left."""
        deadline = time.monotonic() + SOON
        while processes_of(folder):
            assert time.monotonic() < deadline, processes_of(folder)
            time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "count", "per_run"),
    [(COMPRESS, 30, 5), (SEARCH, 10, 3), (STUDIES, 10, 3)],
    ids=["compress", "search", "study"],
)
def test_commands_after_kills(command: Command, count: int, per_run: int, tmp_path: Path) -> None:
    kills = Kills(command, tmp_path, seed=1)
    kills.until(count, per_run)
    print(f"{command.words[0]}: {dict(kills.done)} in {kills.runs} runs")
    assert kills.done.total() >= count
    assert all(kills.done[number.name] >= count // 4 for number in SIGNALS)
