"""Evaluations on this machine: in this process, or several at a time in processes of their own."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Protocol

from autocompress.errors import InfeasibleTargetError, InvalidInputError
from baselines.interface import Evaluation, Objective, Progress, Trial

# What is wrong with the whole search, not with one proposal: nothing is gained by trying again.
FATAL = (InvalidInputError, InfeasibleTargetError)
# A worker that is told to end has this long before it is killed.
END_SECONDS = 5.0


class Job(Protocol):
    """One proposal to be evaluated, perhaps more than once."""

    values: dict[str, float]

    def begin(self) -> None:
        """Called before each attempt."""

    def report(self, progress: Progress) -> bool:
        """Returns whether the attempt is to stop; called after each epoch."""

    def finish(self, evaluation: Evaluation) -> Trial:
        """Called when an attempt has come to its end."""

    def fail(self, error: str) -> Trial | None:
        """Called when an attempt has failed; returns None if there is to be another one."""


NextJob = Callable[[], Job | None]
Ended = Callable[[Trial], None]


def evaluate_here(objective: Objective, next_job: NextJob, ended: Ended) -> None:
    """Evaluates one job after the other in this process until there are no more."""
    while (job := next_job()) is not None:
        trial: Trial | None = None
        while trial is None:
            job.begin()
            try:
                evaluation = objective(job.values, job.report)
            except FATAL:
                raise
            except Exception:  # whatever the objective raises is a trial's result
                trial = job.fail(traceback.format_exc())
            else:
                trial = job.finish(evaluation)
        ended(trial)


def evaluate_in_processes(objective: Objective, next_job: NextJob, ended: Ended, workers: int) -> None:
    """Evaluates `workers` jobs at a time until there are no more; a process that dies is replaced.

    Proposals and records stay in this process: no two workers can be given the same trial. The processes end with
    this function, and with this process.

    Raises:
        InvalidInputError: the objective cannot be sent to another process.
    """
    try:
        payload = pickle.dumps(objective)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise InvalidInputError(
            f"workers is {workers}, but the search cannot be sent to other processes ({error}); use 1 worker"
        ) from error
    busy: dict[Connection, tuple[_Worker, Job]] = {}
    idle: list[_Worker] = []
    again: list[Job] = []
    try:
        while True:
            while len(busy) < workers and (job := again.pop() if again else next_job()) is not None:
                worker = idle.pop() if idle else _Worker.start(payload, workers)
                job.begin()
                worker.say(job.values)
                busy[worker.connection] = worker, job
            if not busy:
                return
            for connection in wait(list(busy)):
                worker, job = busy[connection]  # type: ignore[index]
                kind, content = worker.answer()
                if kind == "progress":
                    epoch, accuracy, steps, seconds = content
                    worker.say(job.report(Progress(epoch, accuracy, steps, seconds, state=dict)))
                    continue
                del busy[worker.connection]
                if kind != "died":
                    idle.append(worker)
                trial = job.finish(content) if kind == "done" else job.fail(content)
                if trial is None:
                    again.append(job)
                else:
                    ended(trial)
    finally:
        for worker in [*idle, *(worker for worker, _ in busy.values())]:
            worker.end()


@dataclass
class _Worker:
    """A process that evaluates what it is sent, seen from the parent."""

    process: SpawnProcess
    connection: Connection

    @classmethod
    def start(cls, payload: bytes, workers: int) -> _Worker:
        """Returns a new worker, one of `workers`."""
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(target=_work, args=(there, payload, workers), daemon=True)
        with _without_interrupt():
            process.start()
        there.close()
        return cls(process, here)

    def say(self, message: Any) -> None:
        """Sends values to evaluate, or whether to stop; a worker that has died will be noticed by its answer."""
        with suppress(OSError):
            self.connection.send(message)

    def answer(self) -> tuple[str, Any]:
        """Returns what comes next: ("progress", numbers), ("done", evaluation), ("failed" or "died", what happened).

        Raises:
            InvalidInputError, InfeasibleTargetError: the objective raised it.
            RuntimeError: the worker could not make the objective.
        """
        try:
            kind, content = self.connection.recv()
        except (EOFError, OSError):
            self.end()
            return "died", f"the worker process ended with exit code {self.process.exitcode}"
        if kind == "infeasible":
            raise InfeasibleTargetError(*content)
        if kind == "invalid":
            raise InvalidInputError(content)
        if kind == "broken":
            raise RuntimeError(f"a worker process could not take over the search:\n{content}")
        return kind, content

    def end(self) -> None:
        """Ends the process."""
        self.process.terminate()
        self.process.join(END_SECONDS)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.connection.close()


@contextmanager
def _without_interrupt() -> Iterator[None]:
    """Lets processes that are started inside ignore Ctrl-C: it reaches them all, and the parent ends them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _work(connection: Connection, payload: bytes, workers: int) -> None:
    """Evaluates what comes over the connection, for as long as the parent lives."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # stdout belongs to the answer of the command that started the search.
    sys.stdout = sys.stderr
    try:
        objective: Objective = pickle.loads(payload)
        _share_threads(workers)
    except Exception:  # sent to the parent, which raises it
        connection.send(("broken", traceback.format_exc()))
        return
    while True:
        values = connection.recv()
        try:
            answer: tuple[str, Any] = "done", objective(values, lambda progress: _ask(connection, progress))
        except InfeasibleTargetError as error:
            answer = "infeasible", (str(error), error.smallest)
        except InvalidInputError as error:
            answer = "invalid", str(error)
        except Exception:  # whatever the objective raises is a trial's result
            answer = "failed", traceback.format_exc()
        connection.send(answer)


def _ask(connection: Connection, progress: Progress) -> bool:
    """Returns the parent's answer to a report."""
    numbers = progress.epoch, progress.accuracy, progress.gradient_steps, progress.device_seconds
    connection.send(("progress", numbers))
    return bool(connection.recv())


def _share_threads(workers: int) -> None:
    """Gives this process its part of the threads that torch would use."""
    # Loaded by the objective, if it needs it at all.
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(max(1, torch.get_num_threads() // workers))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
