"""The command line: `autocompress compress | curve | inspect | evaluate | export | energy`.

Exit status: 0 done, 2 bad input (an infeasible target included), 3 damaged file, 130 interrupted, 1 any other failure.
Results go to stdout, progress and messages to stderr.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence

from autocompress.cli.console import interrupts_held_back, run_command
from autocompress.cli.parser import build_parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status; `arguments` default to those of the process."""
    options = build_parser().parse_args(arguments)
    return run_command(
        "autocompress",
        lambda: _run(options),
        on_interrupt=lambda: _how_to_go_on(options),
        progress=not getattr(options, "no_progress", False),
    )


def _run(options: Namespace) -> str:
    # Imported here so that `--help` and a mistyped option answer without loading torch's larger parts.
    with interrupts_held_back():
        from autocompress.cli import compress_command, curve_command, file_commands

    commands = {
        "compress": compress_command.compress_command,
        "curve": curve_command.curve_command,
        "inspect": file_commands.inspect_command,
        "evaluate": file_commands.evaluate_command,
        "export": file_commands.export_command,
        "energy": file_commands.fit_command,
    }
    return commands[options.command](options)


def _how_to_go_on(options: Namespace) -> str:
    """Returns what to do after Ctrl-C."""
    if options.command == "curve":
        return f"interrupted; the same command goes on from {options.out}"
    if options.command != "compress":
        return "interrupted"
    if options.resume is None:
        return "interrupted, nothing was written; with --resume DIR a run can be continued"
    # Nothing is imported here: Ctrl-C may have come in the middle of torch, which cannot be begun once more.
    if not any(options.resume.rglob("*.checkpoint")):
        return f"interrupted before the first checkpoint: {options.resume} holds none, the same command starts anew"
    return f"interrupted; the same command goes on from {options.resume}"
