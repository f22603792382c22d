"""What a search shows while it runs: trials done, the best so far, the time left."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable

from tqdm import tqdm

from baselines.interface import SearchOutcome, Trial

logger = logging.getLogger(__name__)


class SearchDisplay:
    """A bar on stderr where that is a terminal; elsewhere one line in the log for each trial.

    Args:
        trials: of the whole search.
        done: those finished before.
        progress: False = no bar.
    """

    def __init__(self, trials: int, done: Iterable[Trial] = (), *, progress: bool = True) -> None:
        self.trials = trials
        done = list(done)
        self._finished, self._best = len(done), SearchOutcome(tuple(done)).best
        self._terminal = sys.stderr.isatty()
        # `initial` keeps the trials of an earlier run out of the estimate of the time left.
        self._bar = tqdm(
            total=trials,
            initial=self._finished,
            desc="search",
            unit="trial",
            file=sys.stderr,
            disable=not (progress and self._terminal),
        )
        self._show_best()
        if self._finished:
            logger.info("%d trials were finished before and are not run again", self._finished)

    def finished(self, trial: Trial) -> None:
        self._finished += 1
        self._best = SearchOutcome(tuple(each for each in (self._best, trial) if each)).best
        self._show_best()
        self._bar.update()
        if not self._terminal:
            done = f"{self._finished} of {self.trials} done"
            logger.info("trial %d %s, %s", trial.number, self._line(trial), done)

    def __enter__(self) -> SearchDisplay:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def _show_best(self) -> None:
        if self._best is not None and self._best.accuracy is not None:
            loss = "" if self._best.loss is None else f", loss {self._best.loss:.4f}"
            self._bar.set_postfix_str(f"best accuracy {self._best.accuracy:.4f}{loss}", refresh=False)

    def _line(self, trial: Trial) -> str:
        """Returns what became of a trial, and the best so far."""
        accuracy = "" if trial.accuracy is None else f", accuracy {trial.accuracy:.4f}"
        best = self._best
        so_far = "" if best is None or best.accuracy is None else f" (best {best.accuracy:.4f})"
        # The last line of a traceback says what went wrong.
        error = f": {trial.error.strip().splitlines()[-1]}" if trial.error else ""
        return f"{trial.state}{accuracy}{so_far}{error}"
