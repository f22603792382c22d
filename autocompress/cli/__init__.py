"""The command line: `autocompress compress | inspect | evaluate | export`.

Exit status: 0 done, 2 bad input (an infeasible target included), 3 damaged file, 130 interrupted, 1 any other failure.
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

from autocompress.cli.parser import build_parser
from autocompress.errors import AutocompressError, CorruptArtifactError, InfeasibleTargetError, InvalidInputError

DONE, FAILURE, BAD_INPUT, DAMAGED_FILE, INTERRUPTED = 0, 1, 2, 3, 130
EPOCH_LOGGER = "autocompress.training.trainer"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status; `arguments` default to those of the process."""
    options = build_parser().parse_args(arguments)
    try:
        with _messages_on_stderr(options):
            answer = _run(options)
        print(answer, flush=True)
    except KeyboardInterrupt:
        return _say(INTERRUPTED, _how_to_go_on(options))
    except BrokenPipeError:
        # The reader has gone (`| head`). Python would fail once more when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILURE
    except CorruptArtifactError as error:
        return _say(DAMAGED_FILE, f"error: {error}")
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
    # Imported here so that `--help` and a mistyped option answer without loading torch's larger parts.
    from autocompress.cli import compressing, files

    commands = {
        "compress": compressing.compress_command,
        "inspect": files.inspect_command,
        "evaluate": files.evaluate_command,
        "export": files.export_command,
    }
    return commands[options.command](options)


class _Messages(logging.Handler):
    """Prints the package's log on stderr, above a progress bar where there is one."""

    def __init__(self, options: Namespace) -> None:
        super().__init__(logging.INFO)
        # The trainer's line per epoch stands in for the bar where stderr is a file; it is not wanted beside one.
        self.without_epochs = sys.stderr.isatty() or getattr(options, "no_progress", False)

    def emit(self, record: logging.LogRecord) -> None:
        """Prints a record."""
        if self.without_epochs and record.levelno == logging.INFO and record.name == EPOCH_LOGGER:
            return
        tqdm.write(self.format(record), file=sys.stderr)


@contextlib.contextmanager
def _messages_on_stderr(options: Namespace) -> Iterator[None]:
    """Shows the package's log on stderr, and sends there what anybody prints meanwhile (downloads, user code)."""
    handler = _Messages(options)
    logger = logging.getLogger("autocompress")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def _say(status: int, message: str) -> int:
    """Prints one message on stderr and returns the status."""
    print(f"autocompress: {message}", file=sys.stderr)
    return status


def _how_to_go_on(options: Namespace) -> str:
    """Returns what to do after Ctrl-C."""
    if options.command != "compress":
        return "interrupted"
    if options.resume is None:
        return "interrupted, nothing was written; with --resume DIR a run can be continued"
    return f"interrupted; the same command goes on from {options.resume}"
