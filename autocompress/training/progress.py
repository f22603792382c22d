"""What is shown while something lasts: a bar in a terminal or a notebook, elsewhere a line now and then.

Lines go to the log, as INFO below `autocompress`; where nobody has set up logging to show them, to stderr.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from tqdm import tqdm

logger = logging.getLogger(__name__)
stages = logging.getLogger("autocompress.stages")  # shown beside bars, too

# Between two lines of one bar where there is no terminal.
SECONDS_BETWEEN_LINES = 15.0
SECONDS_BETWEEN_EPOCHS = 5.0
# What lasts longer than this without a bar is said.
STAGE_SECONDS = 3.0


def in_notebook() -> bool:
    """Tells whether this runs in a Jupyter kernel, whose stderr is no terminal but shows bars."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and "IPKernelApp" in getattr(shell, "config", ())


def bar_class() -> Any:
    """Returns what draws bars here: in a notebook widgets where it has them, else text."""
    if not in_notebook():
        return tqdm
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a notebook without widgets, in which text does as well
        from tqdm.auto import tqdm as notebook_bar
    return notebook_bar


def shows_bars() -> bool:
    """Tells whether a bar can be drawn."""
    return sys.stderr.isatty() or in_notebook()


def is_shown(log: logging.Logger) -> bool:
    """Tells whether somebody has set up logging to show the log's lines of INFO."""
    return log.isEnabledFor(logging.INFO) and log.hasHandlers()


def say(text: str, log: logging.Logger = logger) -> None:
    """Puts a line into a log; on stderr where nobody has set up logging to show it, nor to keep it out."""
    levels = (each.level for each in (log, logging.getLogger("autocompress")) if each.level != logging.NOTSET)
    if is_shown(log):
        log.info("%s", text)
    elif next(levels, logging.INFO) <= logging.INFO:
        tqdm.write(f"autocompress: {text}", file=sys.stderr)
        sys.stderr.flush()


@contextlib.contextmanager
def stage(what: str, *, shown: bool = True) -> Iterator[None]:
    """Is a block of which it is said what it does, once it has lasted for some seconds."""
    timer = threading.Timer(STAGE_SECONDS, say, (f"{what} ...", stages))
    timer.daemon = True
    if shown:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


class Progress:
    """Steps of something, of which it is known how many there are."""

    def __init__(self, total: int, what: str, *, done: int = 0, shown: bool = True) -> None:
        """Shows nothing yet where there is no bar.

        Args:
            total: number of steps.
            what: the bar's words.
            done: steps that an earlier process did.
            shown: False = nothing at all.
        """
        bars = shows_bars()
        self.total, self.what, self.done, self.start = total, what, done, done
        self.lines = shown and not bars
        self.bar: Any = bar_class()(
            total=total, initial=done, desc=what, file=sys.stderr, disable=not (shown and bars), unit="step"
        )
        self.began = self.told = time.monotonic()
        self.epoch_told = -SECONDS_BETWEEN_EPOCHS  # the first one is said
        self.note = ""

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.bar.close()

    def describe(self, what: str) -> None:
        self.what = what
        self.bar.set_description(what, refresh=False)

    def update(self, note: str = "") -> None:
        """Notes that one more step is done; `note` is what was measured."""
        self.done += 1
        self.note = note or self.note
        if note:
            self.bar.set_postfix_str(note, refresh=False)
        self.bar.update()
        if self.lines and time.monotonic() - self.told >= SECONDS_BETWEEN_LINES:
            self.told = time.monotonic()
            measured = f", {self.note}" if self.note else ""
            say(f"{self.what}: step {self.done:,} of {self.total:,}{measured}, {self.time_left()} left")

    def end_epoch(self, text: str) -> None:
        """Logs what came of an epoch; where there is neither log nor bar it is said, of quick ones not of each."""
        last = self.done == self.total
        if not self.lines:
            logger.info("%s", text)
        elif is_shown(logger) or last or time.monotonic() - self.epoch_told >= SECONDS_BETWEEN_EPOCHS:
            self.told = self.epoch_told = time.monotonic()
            say(text if last else f"{text}, {self.time_left()} left")

    def time_left(self) -> str:
        """Returns how long the rest takes at the pace of this process."""
        pace = (time.monotonic() - self.began) / max(1, self.done - self.start)
        return duration(pace * (self.total - self.done))


def duration(seconds: float) -> str:
    """Returns a time as people say it.

    >>> [duration(seconds) for seconds in (3.4, 200, 5400, 100000)]
    ['3 s', '3 min 20 s', '1 h 30 min', '27 h 47 min']
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
