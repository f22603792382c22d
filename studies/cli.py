"""The command line: `python -m studies list | run | status | report | compare`.

Exit status: 0 done, 2 bad input, 130 interrupted, 1 any other failure, failed cells included.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence

from autocompress.cli.console import run_command
from studies.options import build_parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status; `arguments` default to those of the process."""
    options = build_parser().parse_args(sys.argv[1:] if arguments is None else arguments)
    return run_command("studies", lambda: _answer(options), progress=not getattr(options, "no_progress", False))


def _answer(options: Namespace) -> str:
    """Returns what a command has to say on stdout."""
    # Imported here so that `--help` and a mistyped option answer at once.
    from studies import commands

    return str(getattr(commands, f"{options.command}_command")(options))
