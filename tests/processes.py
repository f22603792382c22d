"""Processes of their own for tests, forked from one that has imported PyTorch: what a test asks, without the imports.

The one they are forked from is an interpreter of its own, so hash seeds and global generators differ from the tests'.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import traceback
from multiprocessing.context import ForkServerContext
from pathlib import Path
from tempfile import TemporaryDirectory

from autocompress.constraints import file_size
from autocompress.constraints.rate_distortion import error_feedback, projection

# The first is what an optimizer imports.
PRELOADED = ["torch._dynamo", "autocompress.solver.compression", "baselines.optuna_search", "studies.running.run"]


def forks() -> ForkServerContext:
    """Returns the context whose processes are forks of one that has imported the above."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


# What the search for the best file may try at most, and how little of it gives some file within the target.
_ROUNDS = [(file_size, "FINAL_ROUNDS", 2), (error_feedback, "ROUNDS", 3), (projection, "ROUNDS", 1)]
_USUAL = [getattr(module, name) for module, name, _ in _ROUNDS]


def search_little(little: bool = True) -> None:
    """Ends the search for the best file early in this process, where any file within the target will do, or not."""
    for (module, name, few), usual in zip(_ROUNDS, _USUAL, strict=True):
        setattr(module, name, few if little else usual)


def _run(code: str, words: list[str], cwd: Path, environment: dict[str, str], outputs: tuple[Path, Path]) -> None:
    os.setsid()
    for number, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    import torch

    torch.set_num_threads(1)
    sys.argv = ["", *words]
    try:
        exec(compile(code, "script", "exec"), {"__name__": "__main__"})
    except Exception:
        traceback.print_exc()
        sys.exit(1)


class Script:
    """Python code that runs in a process, and a process group, of its own. Used like `subprocess.Popen`.

    Attributes:
        stdout, stderr: files of what it has written so far.
    """

    def __init__(self, code: str, *words: str, cwd: Path | None = None, **environment: str) -> None:
        self._folder = TemporaryDirectory()
        self.stdout, self.stderr = (Path(self._folder.name, name) for name in ("stdout", "stderr"))
        for path in (self.stdout, self.stderr):
            path.touch()
        values = (code, list(words), cwd or Path.cwd(), {**os.environ, **environment}, (self.stdout, self.stderr))
        self._process = forks().Process(target=_run, args=values)
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        """Returns the exit status; None: it runs."""
        return self._process.exitcode

    def wait(self) -> int:
        """Returns the exit status once it has ended."""
        self._process.join()
        assert self._process.exitcode is not None
        return self._process.exitcode

    returncode = property(wait)

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def communicate(self) -> tuple[str, str]:
        """Returns what it has written to stdout and stderr, once it has ended."""
        self.wait()
        return self.stdout.read_text(), self.stderr.read_text()
