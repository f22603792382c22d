"""One command from its options to its exit status; results go to stdout, progress and messages to stderr."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import tempfile
import threading
import traceback
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from autocompress.codec.atomic_write import NAME_CHARACTERS, remove_leftovers
from autocompress.errors import (
    MAX_SEED,
    AutocompressError,
    CorruptArtifactError,
    InfeasibleTargetError,
    InvalidInputError,
)
from autocompress.integrations.page import accuracy_lines as accuracy_lines
from autocompress.integrations.page import percent as percent
from autocompress.integrations.page import to_json as to_json

MODEL = (
    "lenet5, alexnet, resnet20/32/44/56, resnet50, torchvision:NAME, timm:NAME, hf:PATH_OR_CONFIG (a configuration of "
    "transformers), or package.module:function, a function without arguments that returns the network (the current "
    "folder is importable)"
)
LOSS = (
    "cross_entropy, mse, l1, bce_with_logits, model (the network's own), or package.module:function, (output, target) "
    "-> scalar (default: the network's own where it has one, else cross_entropy)"
)
METRIC = (
    "accuracy, binary_accuracy, iou, a loss (minus it), or package.module:function, (output, target) -> one score per "
    "example, higher is better (default: accuracy of class scores, else minus the loss)"
)
DATA = (
    "digits, mnist, fashion-mnist, cifar10, folder:PATH, or package.module:function, a function without arguments "
    "that returns the loaders (train, validation[, test])"
)


def positive(text: str) -> int:
    """Returns a whole number of at least 1."""
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) >= 1):
        raise ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def not_negative(text: str) -> int:
    """Returns a whole number of at least 0."""
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def rate(text: str) -> float:
    """Returns a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ArgumentTypeError(f"{text!r} is not a number above 0, such as 0.01")
    return value


def seed(text: str) -> int:
    """Returns a whole number that every random generator takes as its seed."""
    if not (text.isascii() and text.isdigit() and len(text) < 11 and int(text) <= MAX_SEED):
        raise ArgumentTypeError(f"{text!r} is not a whole number from 0 to {MAX_SEED}")
    return int(text)


DONE, FAILURE, BAD_INPUT, DAMAGED_FILE, INTERRUPTED = 0, 1, 2, 3, 130
# Loggers whose lines stand in for a bar where stderr is a file.
PROGRESS_LOGGERS = ("autocompress.training.progress", "baselines.progress", "studies.progress")


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
            answer = _interruptible(run)
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


def _interruptible(run: Callable[[], str]) -> str:
    """Returns the answer of a command.

    Ctrl-C while a compiled module is imported comes out of it as an ImportError or SystemError of that module.
    """
    try:
        return run()
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, KeyboardInterrupt):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        raise KeyboardInterrupt(*cause.args) from error


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


@contextlib.contextmanager
def interrupts_held_back() -> Iterator[None]:
    """Is a block, an import of torch, which Ctrl-C and SIGTERM end only after it.

    Broken off half-way, torch can neither be imported again nor left: at its end the process may abort.
    """
    held: list[int] = []
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if callable(signal.getsignal(number)):  # not one that is ignored, as in the background of a shell
                before[number] = signal.signal(number, lambda number, frame: held.append(number))
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        if held:
            raise KeyboardInterrupt


class _Messages(logging.Handler):
    """Prints a log on stderr, above a progress bar where there is one."""

    def __init__(self, progress_lines: bool) -> None:
        super().__init__(logging.INFO)
        self.progress_lines = progress_lines

    def emit(self, record: logging.LogRecord) -> None:
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
    print(f"{program}: {message}", file=sys.stderr)
    return status


# Enough to find out now, not after hours of training, that a disk is full.
PROBE_BYTES = 65536


def check_output(path: Path, suffixes: tuple[str, ...], inputs: tuple[Path | None, ...] = ()) -> None:
    """Checks that `path` can be written: its name says what it is, its folder takes files, no input is overwritten.

    Raises:
        InvalidInputError: otherwise, naming what is wrong.
    """
    if path.suffix.lower() not in suffixes:
        raise InvalidInputError(f"--out {str(path)!r}: the file's name must end in {' or '.join(suffixes)}")
    try:
        is_folder = path.is_dir()
    except OSError as error:  # a name that is too long for the file system
        raise InvalidInputError(f"--out {str(path)!r} cannot be a file: {error.strerror}") from error
    if is_folder:
        raise InvalidInputError(f"--out {str(path)!r} is a folder; give the name of a file in it")
    for other in inputs:
        if other is not None and path.exists() and other.exists() and path.samefile(other):
            raise InvalidInputError(f"--out {str(path)!r} is a file that is read, too; give it another name")
    check_folder(path.parent, f"--out {str(path)!r}")
    remove_leftovers(path)


def check_folder(folder: Path, what: str) -> None:
    """Checks that files can be created in `folder`.

    Raises:
        InvalidInputError: there is no such folder, or it takes no file; `what` names the option.
    """
    if not folder.is_dir():
        raise InvalidInputError(f"{what}: there is no folder {str(folder)!r}; create it first")
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(PROBE_BYTES))
    except OSError as error:
        raise InvalidInputError(f"{what}: cannot write into the folder {str(folder)!r}: {error.strerror}") from error


def save_or_keep(save: Callable[[Path], None], path: Path) -> None:
    """Writes a result of hours of work; where its place is gone or full by now, to a temporary folder.

    Raises:
        AutocompressError: it is not at `path`; the message says where it is.
    """
    try:
        save(path)
    except (AutocompressError, OSError) as error:
        kept = Path(tempfile.mkdtemp(prefix="autocompress-")) / path.name[-NAME_CHARACTERS:]
        try:
            save(kept)
        except (AutocompressError, OSError) as second:
            raise AutocompressError(f"{error}; nor can it be kept in {kept.parent}: {second}") from error
        raise AutocompressError(f"{error}; the result is kept as {kept}: move it where it shall be") from error


def to_toml(values: Mapping[str, Any]) -> str:
    """Returns strings, numbers and lists of them as a TOML table."""
    return "".join(f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in values.items())
