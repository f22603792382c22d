"""The options of `python -m baselines` and their help."""

from __future__ import annotations

from argparse import ArgumentParser, RawDescriptionHelpFormatter, _SubParsersAction
from pathlib import Path

from autocompress.cli.console import DATA, MODEL, seed

DESCRIPTION = """\
Searches for the keep fraction and the bit-width of each layer the way it is mostly done: propose, train, look.
Everything but the proposals is the compressor's: network, data, trainer, projection, file.
"""

EXAMPLES = """\
examples:
  python -m baselines list
  python -m baselines search optuna-tpe lenet5 --data digits --target 4KB --out net.safetensors
  python -m baselines search optuna-nsga2 lenet5 --data mnist --target 5KB --trials 50 --workers 4 --out net.safetensors
  python -m baselines search condensa lenet5 --data digits --target drop:0.5 --out net.safetensors
  python -m baselines search ray-asha lenet5 --data mnist --target 5KB --ray-address auto --out net.safetensors

exit status: 0 done, 2 bad input (a target that cannot be met included), 130 interrupted, 1 any other failure
"""


def build_parser() -> ArgumentParser:
    """Returns the parser; `command` of what it parses is the name of the command."""
    parser = ArgumentParser(
        allow_abbrev=False,
        prog="python -m baselines",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("list", help="name the methods", allow_abbrev=False)
    _add_search(commands)
    return parser


def _add_search(commands: _SubParsersAction[ArgumentParser]) -> None:
    """Adds `search`."""
    parser = commands.add_parser(
        "search",
        allow_abbrev=False,
        help="search for a plan, train it to its end and write the file",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("method", metavar="METHOD", help="one of `python -m baselines list`")
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    parser.add_argument("--data", required=True, help=DATA)
    parser.add_argument(
        "--target",
        required=True,
        action="append",
        help="the size asked for, as `autocompress compress --help` says; for condensa a file size, or drop:0.5, the "
        "points of validation accuracy that may be lost",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="the .safetensors file to write")
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="trained weights to start from; without it a reference network is trained and kept for the next time",
    )
    parser.add_argument("--seed", type=seed, default=0, metavar="S", help="of everything random (default: 0)")
    parser.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="GLOB",
        help='parameters or modules not to compress, such as "head.*" (may be repeated)',
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: a GPU where there is one)")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout and nothing else there")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar, nor a line per trial")
    _add_budget(parser)
    _add_machines(parser)


def _add_budget(parser: ArgumentParser) -> None:
    """Adds what is searched, and how much may be spent."""
    parser.add_argument(
        "--trials",
        type=int,
        metavar="N",
        help="proposals in all, resumed ones included (default: 20; uniform and magnitude have 6; condensa takes 10 at "
        "most). The first is fixed, "
        "and how many more are random before a model proposes depends on their number",
    )
    parser.add_argument(
        "--max-steps",
        type=int,
        metavar="N",
        help="gradient steps that all trials together may take: none begins that could not go to its end",
    )
    parser.add_argument("--max-seconds", type=float, metavar="S", help="the same in seconds of device time")
    parser.add_argument(
        "--trial-epochs", type=int, metavar="E", help="epochs of each trial (default: a tenth of --final-epochs)"
    )
    parser.add_argument(
        "--final-epochs",
        type=int,
        metavar="F",
        help="epochs of the best plan's training (default: those of `autocompress compress`, by model)",
    )
    parser.add_argument(
        "--space",
        metavar="SPACE",
        help="per-layer, block (of layers), global (two numbers) or price (a multiplier per layer); default: per-layer",
    )
    parser.add_argument(
        "--pruner",
        metavar="PRUNER",
        help="what stops trials that go badly: none, median or hyperband (default: median for random and optuna-tpe, "
        "none for the others, which learn nothing from a trial that was stopped)",
    )


def _add_machines(parser: ArgumentParser) -> None:
    """Adds where the search is kept, and where it runs."""
    parser.add_argument(
        "--storage",
        metavar="URL",
        help="where the search is kept: an Optuna URL, which optuna-dashboard opens, or journal:FILE; for Ray a folder "
        "(default: NAME.search.db or the folder NAME.search beside --out)",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with the search in the storage, or begin it there; several processes, of several machines with a "
        "database or a journal that all see, share it: a trial that one leaves behind is taken up by another",
    )
    parser.add_argument(
        "--workers", type=int, default=1, metavar="W", help="trials at a time (default: 1, which can be repeated)"
    )
    parser.add_argument(
        "--ray-address", metavar="A", help="a running Ray cluster (default: one is started on this machine)"
    )
    parser.add_argument("--cpus-per-trial", type=float, default=1.0, metavar="C", help="of a Ray trial (default: 1)")
    parser.add_argument("--gpus-per-trial", type=float, default=0.0, metavar="G", help="of a Ray trial (default: 0)")
