"""The command line: `python -m baselines list | search`.

Exit status: 0 done, 2 bad input (an infeasible target included), 130 interrupted, 1 any other failure.
Results go to stdout, progress and messages to stderr.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence

from autocompress.cli.console import interrupts_held_back, run_command
from baselines.methods import METHODS
from baselines.options import build_parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status; `arguments` default to those of the process."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options = build_parser().parse_args(arguments)
    options.arguments = arguments
    return run_command("baselines", lambda: _run(options), progress=not getattr(options, "no_progress", False))


def _run(options: Namespace) -> str:
    """Returns what a command has to say on stdout."""
    if options.command == "list":
        width = max(map(len, METHODS))
        return "\n".join(f"{name:{width}}  {method.description}" for name, method in METHODS.items())
    # Imported here so that `list` and a mistyped option answer without loading torch's larger parts.
    with interrupts_held_back():
        from baselines.search_command import search_command

    return search_command(options)
