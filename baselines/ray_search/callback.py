"""Writes down what Ray Tune tells of its trials, and ends a search on Ctrl-C."""

from __future__ import annotations

import json
import logging
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from ray.tune import Callback, Checkpoint, Stopper
from ray.tune.experiment import Trial as RayTrial

from baselines.interface import Trial
from baselines.ray_search.records import Event, History, SearchFolder

logger = logging.getLogger(__name__)
REPORTED = ("part", "from_scratch", "node", "epoch", "accuracy", "gradient_steps", "device_seconds")
COLORS = re.compile(r"\x1b\[[0-9;]*m")


class Recorder(Callback):
    """Keeps the histories of a search up to date, in memory and in its folder.

    Args:
        folder: of the search.
        histories: of the trials started so far, by number; changed in place.
        retries: how often a trial may fail and still be started again.
        ended: called with each trial that has reached its final state.
    """

    def __init__(
        self, folder: SearchFolder, histories: dict[int, History], retries: int, ended: Callable[[Trial], None]
    ) -> None:
        self._folder, self._histories, self._retries = folder, histories, retries
        self._ended: Callable[[Trial], None] | None = ended
        self._numbers: dict[str, int] = {}  # by Ray's name: population based training copies configurations
        self._started: set[str] = set()
        self._own_seconds: dict[int, float] = {}

    def __getstate__(self) -> dict[str, Any]:
        # Ray Tune pickles its callbacks beside its own state, of which nothing is read again. A display cannot be.
        return self.__dict__ | {"_ended": None}

    def on_trial_start(self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any) -> None:
        """Notes that a trial has begun, or has been started again after a failure."""
        if trial.trial_id not in self._started:  # otherwise it has been paused
            self._started.add(trial.trial_id)
            values = trial.config["proposal"]["values"]
            self._add({"event": "start", "number": self._number(trial), "values": values})

    def on_trial_result(
        self, iteration: int, trials: list[RayTrial], trial: RayTrial, result: dict[str, Any], **info: Any
    ) -> None:
        """Notes an epoch, and the evaluation that comes with the last one."""
        begun = time.perf_counter()
        number = self._number(trial)
        what = {"event": "report", "number": number, "values": trial.config["proposal"]["values"]}
        evaluation = json.loads(result["evaluation"]) if result["evaluation"] else None
        self._add(what | {name: result[name] for name in REPORTED} | {"evaluation": evaluation})
        self._spent(number, result["own_seconds"] + time.perf_counter() - begun)

    def on_checkpoint(
        self, iteration: int, trials: list[RayTrial], trial: RayTrial, checkpoint: Checkpoint, **info: Any
    ) -> None:
        """Notes where the newest state of a trial lies."""
        self._add({"event": "checkpoint", "number": self._number(trial), "checkpoint": checkpoint.path})

    def on_trial_complete(self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any) -> None:
        """Notes the end of a trial: done, or stopped by the scheduler."""
        number = self._number(trial)
        self._end(number, "complete" if self._histories[number].evaluation else "stopped")

    def on_trial_recover(self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any) -> None:
        """Notes a failure after which Ray Tune starts the trial again."""
        self.on_trial_start(iteration, trials, trial)  # unless noted: an actor may be lost before Ray Tune calls it
        self._started.discard(trial.trial_id)
        self._add({"event": "failure", "number": self._number(trial), "error": _error(trial)})

    def on_trial_error(self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any) -> None:
        """Notes a failure after which Ray Tune gives a trial up; one with retries left is left open."""
        number = self._number(trial)
        self.on_trial_recover(iteration, trials, trial)
        if self._histories[number].failures > self._retries:
            self._end(number, "failed")

    def _number(self, trial: RayTrial) -> int:
        number: int = self._numbers.setdefault(trial.trial_id, trial.config["proposal"]["number"])
        return number

    def _add(self, event: Event) -> None:
        self._folder.append(event)
        self._histories.setdefault(event["number"], History(event["number"])).add(event)

    def _spent(self, number: int, seconds: float) -> None:
        self._own_seconds[number] = self._own_seconds.get(number, 0.0) + seconds

    def _end(self, number: int, state: str) -> None:
        begun = time.perf_counter()
        self._add({"event": "end", "number": number, "state": state})
        if self._ended is not None:
            self._ended(self._histories[number].trial())
        self._spent(number, time.perf_counter() - begun)
        self._add({"event": "overhead", "number": number, "own_seconds": self._own_seconds[number]})


def _error(trial: RayTrial) -> str:
    """Returns the traceback of the last failure of a trial."""
    file = trial.error_file
    text = Path(file).read_text() if file and Path(file).exists() else ""
    return COLORS.sub("", text.rpartition("Failure # ")[2].partition("\n")[2]).strip() or "no traceback"


class Interrupt(Stopper):
    """Ends a search in an orderly way once it is set."""

    def __init__(self) -> None:
        self.is_set = False

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Returns False: no single trial is ended."""
        return False

    def stop_all(self) -> bool:
        """Returns whether the search is to end."""
        return self.is_set


@contextmanager
def interruptible() -> Iterator[Interrupt]:
    """Gives what the first Ctrl-C sets; the second one raises KeyboardInterrupt. The old handler comes back at the end.

    Ray Tune's own handler does not come off at the end of a search; it is switched off by `ray_cluster.quiet`.
    """
    interrupt = Interrupt()

    def handle(number: int, frame: FrameType | None) -> None:
        if interrupt.is_set:
            raise KeyboardInterrupt
        interrupt.is_set = True
        logger.warning("ending the search once the running epochs are done; Ctrl-C again ends it at once")

    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGUSR1)}
    signal.signal(signal.SIGINT, handle)
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
