"""One command from its options to its exit status; results go to stdout, progress and messages to stderr."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence

from tqdm import tqdm

from autocompress.errors import AutocompressError, CorruptArtifactError, InfeasibleTargetError, InvalidInputError

DONE, FAILURE, BAD_INPUT, DAMAGED_FILE, INTERRUPTED = 0, 1, 2, 3, 130
# Loggers whose lines stand in for a bar where stderr is a file.
PROGRESS_LOGGERS = ("autocompress.training.trainer", "baselines.progress", "studies.progress")


def run_command(
    program: str,
    run: Callable[[], str],
    *,
    on_interrupt: Callable[[], str] = lambda: "interrupted",
    progress: bool = True,
) -> int:
    """Runs a command, prints its answer on stdout and returns the exit status.

    0 done, 2 bad input (an infeasible target included), 3 damaged file, 130 interrupted, 1 any other failure.

    Args:
        program: the first word of its messages, and the package whose log is shown beside that of `autocompress`.
        run: returns the answer.
        on_interrupt: returns what is said after Ctrl-C, where the interrupt carries no message of its own.
        progress: lines of progress where stderr is no terminal.
    """
    try:
        with _terminated_as_interrupted(), _messages_on_stderr({"autocompress", program}, progress):
            answer = run()
        print(answer, flush=True)
    except KeyboardInterrupt as interrupt:
        return _say(program, INTERRUPTED, str(interrupt) or on_interrupt())
    except BrokenPipeError:
        # The reader has gone (`| head`). Python would fail once more when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILURE
    except CorruptArtifactError as error:
        return _say(program, DAMAGED_FILE, f"error: {error}")
    except (InvalidInputError, InfeasibleTargetError) as error:
        return _say(program, BAD_INPUT, f"error: {error}")
    except (AutocompressError, OSError) as error:
        return _say(program, FAILURE, f"error: {error}")
    except Exception as error:  # a bug, here or in the user's own functions: the traceback is what helps
        traceback.print_exc()
        return _say(program, FAILURE, f"error: unexpected {type(error).__name__}: {error}")
    return DONE


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Takes SIGTERM, which a scheduler sends before it kills, for Ctrl-C; where signals can be set at all."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Messages(logging.Handler):
    """Prints a log on stderr, above a progress bar where there is one."""

    def __init__(self, progress_lines: bool) -> None:
        super().__init__(logging.INFO)
        self.progress_lines = progress_lines

    def emit(self, record: logging.LogRecord) -> None:
        """Prints a record."""
        if not self.progress_lines and record.levelno == logging.INFO and record.name in PROGRESS_LOGGERS:
            return
        tqdm.write(self.format(record), file=sys.stderr)


@contextlib.contextmanager
def _messages_on_stderr(names: set[str], progress: bool) -> Iterator[None]:
    """Shows these packages' logs on stderr, and sends there what anybody prints meanwhile (downloads, user code)."""
    handler = _Messages(progress and not sys.stderr.isatty())
    loggers: Sequence[logging.Logger] = [logging.getLogger(name) for name in sorted(names)]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)


def _say(program: str, status: int, message: str) -> int:
    """Prints one message on stderr and returns the status."""
    print(f"{program}: {message}", file=sys.stderr)
    return status
