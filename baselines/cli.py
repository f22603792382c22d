"""The command line: `python -m baselines list | search`.

Exit status: 0 done, 2 bad input (an infeasible target included), 130 interrupted, 1 any other failure.
Results go to stdout, progress and messages to stderr.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import traceback
from argparse import Namespace
from collections.abc import Iterator, Sequence

from tqdm import tqdm

from autocompress.errors import AutocompressError, InfeasibleTargetError, InvalidInputError
from baselines.methods import METHODS
from baselines.options import build_parser

DONE, FAILURE, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
LOGGERS = ("autocompress", "baselines")
# Their lines stand in for a bar where stderr is a file.
LINES_OF_PROGRESS = ("autocompress.training.trainer", "baselines.progress")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status; `arguments` default to those of the process."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options = build_parser().parse_args(arguments)
    options.arguments = arguments
    try:
        with _messages_on_stderr(without_progress=getattr(options, "no_progress", False)):
            answer = _run(options)
        print(answer, flush=True)
    except KeyboardInterrupt as interrupt:
        return _say(INTERRUPTED, str(interrupt) or "interrupted")
    except BrokenPipeError:
        # The reader has gone (`| head`). Python would fail once more when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILURE
    except (InvalidInputError, InfeasibleTargetError) as error:
        return _say(BAD_INPUT, f"error: {error}")
    except (AutocompressError, OSError) as error:
        return _say(FAILURE, f"error: {error}")
    except Exception as error:  # a bug, here or in the user's own functions: the traceback is what helps
        traceback.print_exc()
        return _say(FAILURE, f"error: unexpected {type(error).__name__}: {error}")
    return DONE


def _run(options: Namespace) -> str:
    """Returns what a command has to say on stdout."""
    if options.command == "list":
        width = max(map(len, METHODS))
        return "\n".join(f"{name:{width}}  {method.description}" for name, method in METHODS.items())
    # Imported here so that `list` and a mistyped option answer without loading torch's larger parts.
    from baselines.search_command import search_command

    return search_command(options)


class _Messages(logging.Handler):
    """Prints a log on stderr, above a progress bar where there is one."""

    def __init__(self, *, without_progress: bool) -> None:
        super().__init__(logging.INFO)
        self.without_progress = without_progress

    def emit(self, record: logging.LogRecord) -> None:
        """Prints a record."""
        if self.without_progress and record.levelno == logging.INFO and record.name in LINES_OF_PROGRESS:
            return
        tqdm.write(self.format(record), file=sys.stderr)


@contextlib.contextmanager
def _messages_on_stderr(*, without_progress: bool) -> Iterator[None]:
    """Shows the packages' logs on stderr, and sends there what anybody prints meanwhile (downloads, user code)."""
    handler = _Messages(without_progress=without_progress or sys.stderr.isatty())
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)


def _say(status: int, message: str) -> int:
    """Prints one message on stderr and returns the status."""
    print(f"baselines: {message}", file=sys.stderr)
    return status
