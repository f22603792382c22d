"""Whose trial it is where several processes share a study, and whether that process still works on it.

A trial that runs names its owner in an attribute, with a counter that the owner moves on. Nobody compares clocks: who
looks on notes by its own clock when it last saw the counter move. A process of the same machine that is gone is known
to be at once, any other once its counter has stood still for `GRACE_SECONDS`.

Optuna's own heartbeat is not used: databases alone have it, and it ends a stale trial as failed and begins its like
under another number, so that a search which was killed would no longer be the one that was not.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage

logger = logging.getLogger(__name__)
OWNER = "owner"  # attribute of a trial
BEAT_SECONDS = 10.0
GRACE_SECONDS = 60.0
# Tokens of the searches that this process runs: another one under its number belongs to a search that is over.
_running: set[str] = set()


def machine() -> str:
    """Returns what tells the processes that this one sees by their numbers from all others."""
    parts = [socket.gethostname()]
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        with suppress(OSError):
            parts.append(os.readlink(path) if "/ns/" in path else Path(path).read_text().strip())
    return "/".join(parts)


class Ownership:
    """The trials that one search of this process owns, and what it knows of the others' owners."""

    def __init__(self, storage: BaseStorage, clock: Callable[[], float] = time.monotonic) -> None:
        self._storage, self._clock = storage, clock
        self.token, self._machine = uuid.uuid4().hex, machine()
        self._beat = 0
        self._owned: set[int] = set()
        self._seen: dict[int, tuple[str, float]] = {}  # trial -> what its attribute was, and since when
        self._over = threading.Event()
        _running.add(self.token)
        self._thread = threading.Thread(target=self._beat_on, daemon=True)
        self._thread.start()

    def take(self, trial_id: int) -> None:
        """Notes that a trial which this search has just claimed is its own."""
        self._owned.add(trial_id)
        self._write(trial_id)

    def holds(self, trial_id: int) -> bool:
        """Tells whether a trial is still this search's own: one that stood still too long may have been taken over."""
        owner = self._storage.get_trial(trial_id).user_attrs.get(OWNER) or {}
        return bool(owner.get("token") == self.token)

    def let_go(self, trial_id: int) -> None:
        self._owned.discard(trial_id)

    def is_lost(self, trial_id: int, owner: Mapping[str, Any] | None) -> bool:
        """Tells whether nobody works on a running trial, given its attribute."""
        if owner and owner["machine"] == self._machine and not _is_alive(int(owner["pid"]), owner["token"]):
            return True
        state, now = repr(owner), self._clock()
        before, since = self._seen.get(trial_id, ("", now))
        if before != state:
            since = now
        self._seen[trial_id] = state, since
        return now - since >= GRACE_SECONDS

    def close(self) -> list[int]:
        """Ends the heartbeat and returns the trials that are still owned."""
        self._over.set()
        self._thread.join()
        _running.discard(self.token)
        return sorted(self._owned)

    def _write(self, trial_id: int) -> None:
        owner = {"token": self.token, "machine": self._machine, "pid": os.getpid(), "beat": self._beat}
        self._storage.set_trial_user_attr(trial_id, OWNER, owner)

    def _beat_on(self) -> None:
        while not self._over.wait(BEAT_SECONDS):
            self._beat += 1
            for trial_id in list(self._owned):
                try:
                    if self.holds(trial_id):
                        self._write(trial_id)
                except UpdateFinishedTrialError:
                    pass  # it has ended in between
                except Exception as error:  # a server that is away for a moment; the next beat may reach it
                    logger.warning("the storage could not be told that this process is alive: %s", error)


def _is_alive(pid: int, token: str) -> bool:
    """Tells whether a process of this machine may still run the search that the token is of."""
    if pid == os.getpid():
        return token in _running
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        return True
    with suppress(OSError, IndexError):  # killed, and its parent has not looked yet
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    return True
