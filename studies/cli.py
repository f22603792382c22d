"""The command line: `python -m studies list | run | status | records | report | compare`.

Exit status: 0 done, 2 bad input, 130 interrupted, 1 any other failure, failed cells included.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path

from autocompress.cli.console import interrupts_held_back, positive, run_command

DESCRIPTION = """\
Compares methods on tasks, for targets and seeds: every cell of that grid is run once and leaves one record; tables,
figures and a page are made from the records.
"""

EXAMPLES = """\
examples:
  python -m studies list
  python -m studies run digits --smoke
  python -m studies run digits --workers 2
  python -m studies run my_study.py --ray-address head:6379 --cpus-per-cell 4 --gpus-per-cell 1
  python -m studies status digits
  python -m studies report digits
  python -m studies records digits --csv > digits.csv

A study that was stopped in any way goes on by the same command: finished cells are not run again, nor finished trials
of a search. Several runners may work on one study, in one folder of results. To have cells run again that are finished,
delete their files in the folder `records`.

exit status: 0 done, 2 bad input (a target that cannot be met included), 130 interrupted, 1 any other failure; failed
cells included
"""

STUDY = "a name of `python -m studies list`, or the path of a Python file that sets SPEC to a studies.spec.StudySpec"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status; `arguments` default to those of the process."""
    options = build_parser().parse_args(sys.argv[1:] if arguments is None else arguments)
    return run_command("studies", lambda: _answer(options), progress=not getattr(options, "no_progress", False))


def _answer(options: Namespace) -> str:
    """Returns what a command has to say on stdout."""
    # Imported here so that `--help` and a mistyped option answer at once.
    with interrupts_held_back():
        from studies import commands

    return str(getattr(commands, f"{options.command}_command")(options))


def build_parser() -> ArgumentParser:
    """Returns the parser; `command` of what it parses is the name of the command."""
    parser = ArgumentParser(
        allow_abbrev=False,
        prog="python -m studies",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    listing = commands.add_parser(
        "list", help="name the studies, how many cells they have and how many are finished", allow_abbrev=False
    )
    _add_results(listing)
    run = commands.add_parser("run", help="run the cells that are not done", allow_abbrev=False)
    _add_study(run)
    _add_run(run)
    status = commands.add_parser(
        "status", help="show which cells are finished, failed, running and missing", allow_abbrev=False
    )
    _add_study(status)
    records = commands.add_parser("records", help="show the records as a table", allow_abbrev=False)
    _add_study(records)
    records.add_argument("--csv", action="store_true", help="all columns, as CSV; docs/records.md says what they are")
    report = commands.add_parser("report", help="make tables, figures and a page from the records", allow_abbrev=False)
    _add_study(report, nargs="*")
    report.add_argument("--out", type=Path, metavar="DIR", help="where they are written (default: beside the records)")
    _add_partial(report)
    report.add_argument(
        "--mixed", action="store_true", help="cells of different revisions or references are told, and no error"
    )
    compare = commands.add_parser("compare", help="compare the cells that two studies share", allow_abbrev=False)
    for name in ("a", "b"):
        compare.add_argument(name, metavar=name.upper(), help=STUDY)
    _add_results(compare)
    _add_partial(compare)
    return parser


def _add_study(parser: ArgumentParser, nargs: str | None = None) -> None:
    more = "; several, or none for all that have records" if nargs else ""
    parser.add_argument("study", metavar="STUDY", help=STUDY + more, nargs=nargs)
    parser.add_argument("--smoke", action="store_true", help="the study's small variant, NAME-smoke: one seed, minutes")
    _add_results(parser)


def _add_results(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--results",
        type=Path,
        metavar="DIR",
        help="folder of the results, in which each study has one of its own (default: studies/results of the checkout, "
        "or `results` beside a file of your own)",
    )


def _add_partial(parser: ArgumentParser) -> None:
    parser.add_argument("--partial", action="store_true", help="missing and failed cells are marked, and no error")


def _add_run(parser: ArgumentParser) -> None:
    """Adds which cells are run, and where."""
    parser.add_argument("--only", action="append", default=[], metavar="METHOD", help="this method (may be repeated)")
    parser.add_argument(
        "--retry-failed",
        action="store_true",
        help="run cells again that failed before (default: they are left as they are; most would fail again)",
    )
    parser.add_argument(
        "--workers",
        type=positive,
        metavar="W",
        help="cells at a time (default: one for each CPU, or for each GPU where there are some; on a cluster as many "
        "as it has room for)",
    )
    parser.add_argument("--ray-address", metavar="A", help="run the cells on this Ray cluster (HOST:PORT, or auto)")
    parser.add_argument(
        "--cpus-per-cell",
        type=positive,
        metavar="C",
        help="threads of a cell, and CPUs that it holds on a cluster (default: the CPUs divided among the workers; on "
        "a cluster 1)",
    )
    parser.add_argument(
        "--gpus-per-cell",
        type=_share,
        metavar="G",
        help="GPUs that a cell holds on a cluster, and a trial of a Ray search anywhere (default: 0 on a cluster, else "
        "this machine's divided among the workers)",
    )
    parser.add_argument(
        "--storage",
        metavar="DIR",
        help="a folder in which searches are kept while they run, and which all nodes of the cluster see; ray-pbt "
        "needs one on several machines (default: beside the records; on a cluster none: a search that was stopped "
        "begins anew)",
    )
    parser.add_argument("--no-progress", action="store_true", help="no bar, nor a line for each cell")


def _share(text: str) -> float:
    """Returns a number of GPUs: a part of one, or some whole ones."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not (0 <= value <= 1 or (value < 1000 and value == int(value))):
        raise ArgumentTypeError(f"{text!r} is not a number from 0 to 1, nor a whole number")
    return value
