"""Notices that the head of a cluster has gone, before Ray ends this process without a word of ours."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable

logger = logging.getLogger(__name__)
# Ray gives a head that does not answer a minute and then ends the process.
LOOK_SECONDS, LOOKS = 5.0, 3
# For the main thread to leave; it cannot while it waits inside Ray for an answer of the head.
LEAVE_SECONDS = 10.0


class HeadWatch:
    """Knocks at the head's port every few seconds.

    Attributes:
        address: HOST:PORT of the head.
        lost: whether it has not answered `LOOKS` times in a row.
    """

    def __init__(self, address: str, interrupt: Callable[[], None], last_words: Callable[[], str]) -> None:
        """Begins to watch.

        Args:
            address: of the head.
            interrupt: called in a thread once the head is lost: it is to make the main thread leave.
            last_words: what is said where the main thread cannot leave, before the process is ended.
        """
        host, _, port = address.rpartition(":")
        self.address, self.lost = address, False
        self._place = host.strip("[]"), int(port)
        self._interrupt, self._last_words = interrupt, last_words
        self._over = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def __str__(self) -> str:
        return f"the head of the Ray cluster, {self.address}, does not answer any more"

    def close(self) -> None:
        self._over.set()

    def _watch(self) -> None:
        missed = 0
        while not self._over.wait(LOOK_SECONDS):
            missed = 0 if self._answers() else missed + 1
            if missed >= LOOKS:
                self.lost = True
                self._interrupt()
                if not self._over.wait(LEAVE_SECONDS):
                    logger.error("%s", "; ".join(filter(None, (str(self), self._last_words()))))
                    logging.shutdown()
                    os._exit(1)
                return

    def _answers(self) -> bool:
        try:
            socket.create_connection(self._place, timeout=LOOK_SECONDS).close()
        except OSError:
            return False
        return True
