"""Writes down what Ray Tune tells of its trials, and ends a search on Ctrl-C."""

from __future__ import annotations

import _thread
import json
import logging
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError
from ray.tune import Callback, Checkpoint, Stopper
from ray.tune.experiment import Trial as RayTrial

from baselines.interface import Trial, score_of
from baselines.ray_search.records import Event, History, SearchFolder
from baselines.spending import Spending

logger = logging.getLogger(__name__)
# Of one trial: one that takes its process with it each time, by its memory say, must come to an end.
MAX_LOSSES = 10
REPORTED = ("part", "from_scratch", "node", "epoch", "accuracy", "loss", "gradient_steps", "device_seconds")
COLORS = re.compile(r"\x1b\[[0-9;]*m")


class Recorder(Callback):
    """Keeps the histories of a search up to date, in memory and in its folder.

    Args:
        folder: of the search.
        histories: of the trials started so far, by number; changed in place.
        retries: how often a trial may fail and still be started again.
        ended: called with each trial that has reached its final state.
        spending: of the search; what it costs is noted there.
        forgets: a trial's checkpoint goes with its end; otherwise another one may yet go on from it.
    """

    def __init__(
        self,
        folder: SearchFolder,
        histories: dict[int, History],
        retries: int,
        ended: Callable[[Trial], None],
        spending: Spending | None = None,
        forgets: bool = False,
    ) -> None:
        self._folder, self._histories, self._retries, self._forgets = folder, histories, retries, forgets
        self._ended: Callable[[Trial], None] | None = ended
        self.spending = spending or Spending(None, None, 0)
        for history in histories.values():
            self._cost(history, running=False)
        self._numbers: dict[str, int] = {}  # by Ray's name: population based training copies configurations
        self._started: set[str] = set()
        self._own_seconds: dict[int, float] = {}
        scores = [
            score_of(h.evaluation["accuracy"], h.evaluation.get("loss")) for h in histories.values() if h.evaluation
        ]
        self._best = max(scores, default=None)

    def __getstate__(self) -> dict[str, Any]:
        # Ray Tune pickles its callbacks beside its own state, of which nothing is read again. A display cannot be.
        return self.__dict__ | {"_ended": None}

    def on_trial_start(self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any) -> None:
        if trial.trial_id not in self._started:  # otherwise it has been paused
            self._started.add(trial.trial_id)
            values = trial.config["proposal"]["values"]
            self._add({"event": "start", "number": self._number(trial), "values": values})

    def on_trial_result(
        self, iteration: int, trials: list[RayTrial], trial: RayTrial, result: dict[str, Any], **info: Any
    ) -> None:
        begun = time.perf_counter()
        number = self._number(trial)
        what = {"event": "report", "number": number, "values": trial.config["proposal"]["values"]}
        evaluation = json.loads(result["evaluation"]) if result["evaluation"] else None
        if evaluation is not None and not self._is_best(result["score"]):
            evaluation["file"] = ""  # only what may be the best of the search is kept
        self._add(what | {name: result[name] for name in REPORTED} | {"evaluation": evaluation})
        self._spent(number, result["own_seconds"] + time.perf_counter() - begun)

    def on_checkpoint(
        self, iteration: int, trials: list[RayTrial], trial: RayTrial, checkpoint: Checkpoint, **info: Any
    ) -> None:
        """Notes where the newest state of a trial lies; Ray Tune itself deletes older ones, but not another round's."""
        before = self._histories[self._number(trial)].checkpoint
        if before is not None and self._forgets and Path(before).parent != Path(checkpoint.path).parent:
            shutil.rmtree(before, ignore_errors=True)
        self._add({"event": "checkpoint", "number": self._number(trial), "checkpoint": checkpoint.path})

    def on_trial_complete(self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any) -> None:
        number = self._number(trial)
        self._end(number, "complete" if self._histories[number].evaluation else "stopped")

    def on_trial_recover(self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any) -> None:
        """Notes a failure, or the loss of a node or process, after which Ray Tune starts the trial again."""
        self.on_trial_start(iteration, trials, trial)  # unless noted: an actor may be lost before Ray Tune calls it
        self._started.discard(trial.trial_id)
        self._add(
            {"event": "loss" if _is_loss(trial) else "failure", "number": self._number(trial), "error": _error(trial)}
        )

    def on_trial_error(self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any) -> None:
        """Notes a failure after which Ray Tune gives a trial up; one with retries left is left open."""
        number = self._number(trial)
        self.on_trial_recover(iteration, trials, trial)
        history = self._histories[number]
        if history.failures > self._retries or history.losses > MAX_LOSSES:
            self._end(number, "failed")

    def _is_best(self, score: float) -> bool:
        if self._best is not None and score < self._best:
            return False
        self._best = score
        return True

    def _number(self, trial: RayTrial) -> int:
        number: int = self._numbers.setdefault(trial.trial_id, trial.config["proposal"]["number"])
        return number

    def _add(self, event: Event) -> None:
        self._folder.append(event)
        history = self._histories.setdefault(event["number"], History(event["number"]))
        history.add(event)
        if event["event"] != "overhead":
            self._cost(history, running=history.state is None and event["event"] not in ("failure", "loss"))

    def _cost(self, history: History, running: bool) -> None:
        self.spending.note(
            history.number,
            sum(history.steps.values()),
            sum(history.seconds.values()),
            running=running,
            whole=history.state == "complete",
        )

    def _spent(self, number: int, seconds: float) -> None:
        self._own_seconds[number] = self._own_seconds.get(number, 0.0) + seconds

    def _end(self, number: int, state: str) -> None:
        begun = time.perf_counter()
        self._add({"event": "end", "number": number, "state": state})
        checkpoint = self._histories[number].checkpoint
        if checkpoint is not None and self._forgets:  # thousands of trials would fill the disk
            shutil.rmtree(checkpoint, ignore_errors=True)
        if self._ended is not None:
            self._ended(self._histories[number].trial())
        self._spent(number, time.perf_counter() - begun)
        self._add({"event": "overhead", "number": number, "own_seconds": self._own_seconds[number]})


def _is_loss(trial: RayTrial) -> bool:
    """Tells whether a trial's node or process was lost, which is no failure of the trial itself."""
    try:
        error = ray.cloudpickle.loads(Path(trial.pickled_error_file or "").read_bytes())
    except Exception:  # there is none, or it is of a class that this process does not have
        return False
    cause = error.cause if isinstance(error, RayTaskError) else error
    return isinstance(cause, RayActorError | OutOfMemoryError)


def _error(trial: RayTrial) -> str:
    """Returns the traceback of the last failure of a trial."""
    file = trial.error_file
    text = Path(file).read_text() if file and Path(file).exists() else ""
    return COLORS.sub("", text.rpartition("Failure # ")[2].partition("\n")[2]).strip() or "no traceback"


class Interrupt(Stopper):
    """Ends a search in an orderly way once it is set."""

    def __init__(self, spending: Spending | None = None) -> None:
        self.is_set, self._spending = False, spending

    def end_at_once(self) -> None:
        """Ends what the main thread does by a KeyboardInterrupt, where this search runs there; from any thread."""
        self.is_set = True
        _thread.interrupt_main()

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Returns whether the seconds of the search are over, which ends each trial after its epoch."""
        return self._spending is not None and self._spending.seconds_are_over

    def stop_all(self) -> bool:
        return self.is_set


@contextmanager
def interruptible(spending: Spending | None = None) -> Iterator[Interrupt]:
    """Gives what the first Ctrl-C sets; the second one raises KeyboardInterrupt. The old handler comes back at the end.

    Ray Tune's own handler does not come off at the end of a search; it is switched off by `ray_cluster.quiet`.
    """
    interrupt = Interrupt(spending)

    def handle(number: int, frame: FrameType | None) -> None:
        if interrupt.is_set:
            raise KeyboardInterrupt
        interrupt.is_set = True
        logger.warning("ending the search once the running epochs are done; Ctrl-C again ends it at once")

    if threading.current_thread() is not threading.main_thread():
        interrupt.end_at_once = lambda: None  # type: ignore[method-assign]
        yield interrupt
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGUSR1)}
    signal.signal(signal.SIGINT, handle)
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
