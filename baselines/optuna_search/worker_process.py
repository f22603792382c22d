"""A process that evaluates what its parent sends: both its sides."""

from __future__ import annotations

import pickle
import sys
import traceback
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

from autocompress.errors import InfeasibleTargetError, InvalidInputError
from baselines.child_process import end_process, start_process
from baselines.interface import Objective, Progress

# A worker that is told to end has this long before it is killed.
END_SECONDS = 5.0


@dataclass
class Worker:
    """A process that evaluates what it is sent, seen from the parent."""

    process: SpawnProcess
    connection: Connection
    busy: bool = False

    @classmethod
    def start(cls, payload: bytes, workers: int) -> Worker:
        return cls(*start_process(_work, payload, workers, daemon=True))

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
            self.process.join(END_SECONDS)
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
        """Ends the process: at once where it evaluates something, by itself where it waits."""
        self.say(None)
        self.process.join(0 if self.busy else END_SECONDS)
        end_process(self.process, END_SECONDS)
        self.connection.close()


def _work(connection: Connection, payload: bytes, workers: int) -> None:
    """Evaluates what comes over the connection, for as long as the parent lives."""
    # stdout belongs to the answer of the command that started the search.
    sys.stdout = sys.stderr
    try:
        objective: Objective = pickle.loads(payload)
        _share_threads(workers)
    except Exception:  # sent to the parent, which raises it
        connection.send(("broken", traceback.format_exc()))
        return
    while (values := connection.recv()) is not None:
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
    numbers = progress.epoch, progress.accuracy, progress.gradient_steps, progress.device_seconds, progress.loss
    connection.send(("progress", numbers))
    return bool(connection.recv())


def _share_threads(workers: int) -> None:
    """Gives this process its part of the threads that torch would use."""
    # Loaded by the objective, if it needs it at all.
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(max(1, torch.get_num_threads() // workers))
