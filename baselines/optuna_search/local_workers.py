"""Evaluations on this machine: in this process, or several at a time in processes of their own."""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait

from autocompress.errors import InfeasibleTargetError, InvalidInputError
from baselines.interface import Objective, Progress, Trial
from baselines.optuna_search.trials import RunningTrial
from baselines.optuna_search.worker_process import Worker

# How often a free place is offered to jobs that other processes of the same search have left behind.
LOOK_SECONDS = 5.0
# What is wrong with the whole search, not with one proposal: nothing is gained by trying again.
FATAL = (InvalidInputError, InfeasibleTargetError)


# (whether to wait for one) -> a job, or None: with waiting, none will come; without, there is none now.
NextJob = Callable[[bool], RunningTrial | None]
Ended = Callable[[Trial], None]


def evaluate_here(objective: Objective, next_job: NextJob, ended: Ended) -> None:
    """Evaluates one job after the other in this process until there are no more."""
    while (job := next_job(True)) is not None:
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
    busy: dict[Connection, tuple[Worker, RunningTrial]] = {}
    idle: list[Worker] = []
    again: list[RunningTrial] = []
    try:
        while True:
            while len(busy) < workers and (job := again.pop() if again else next_job(not busy)) is not None:
                worker = idle.pop() if idle else Worker.start(payload, workers)
                job.begin()
                worker.say(job.values)
                worker.busy = True
                busy[worker.connection] = worker, job
            if not busy:
                return
            for connection in wait(list(busy), None if len(busy) == workers else LOOK_SECONDS):
                worker, job = busy[connection]  # type: ignore[index]
                kind, content = worker.answer()
                if kind == "progress":
                    epoch, accuracy, steps, seconds, loss = content
                    worker.say(job.report(Progress(epoch, accuracy, steps, seconds, state=dict, loss=loss)))
                    continue
                del busy[worker.connection]
                worker.busy = False
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
