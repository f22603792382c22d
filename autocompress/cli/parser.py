"""The options of the command line and their help."""

from __future__ import annotations

import json
import sys
import tomllib
from argparse import ArgumentParser, ArgumentTypeError, RawDescriptionHelpFormatter, _SubParsersAction
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

from autocompress.cli.console import DATA, LOSS, METRIC, MODEL, not_negative, positive, rate, seed

EXAMPLES = """\
examples:
  autocompress compress lenet5 --data digits --target 4KB --out lenet5.safetensors
  autocompress compress mypkg.nets:make_net --data mypkg.data:loaders --weights net.pt --target 1% --out net.safetensors
  autocompress inspect lenet5.safetensors --model lenet5
  autocompress evaluate lenet5.safetensors --model lenet5 --data digits
  autocompress export lenet5.safetensors --model lenet5 --to onnx --out lenet5.onnx

exit status: 0 done, 2 bad input (a target that cannot be met included), 3 damaged file, 130 interrupted,
1 any other failure
"""

CURVE = """\
Compresses a network once for each target and writes, into the folder of --out, a file for each, curve.csv, curve.svg
and page.html with accuracy against bytes. Points that are there already are kept: the same command goes on after an
interruption, and with more targets it adds them.

example:
  autocompress curve lenet5 --data mnist --target 100x --target 200x --target 400x --out curve
"""

COMPRESS = """\
Trains a network so that its file is no larger than the target, or as small as a quality constraint (drop:,
loss:) allows, and writes the file.

targets:
  50KB 50KiB 4000B    the file, everything in it (1 KB = 1000 bytes, 1 KiB = 1024 bytes)
  1%   100x           the file, as a part of the original float32 tensors
  weights:836x        bits times nonzeros of the weights alone, as the literature counts: compares, does not fit
  codes:20x           positions, codes and codebooks of the weights, of fixed length; codebooks of kernels among them
  drop:0.5            the smallest file whose validation accuracy is at most 0.5 points below the network's
  loss:+2%            the same for the validation loss, at most 2 % above the network's
  energy:40%          energy of a forward pass, as a part of the dense network's, under an analytic model
  energy-channels:40% the same by removing whole channels, so that the network can be made physically smaller
A file size goes together with energy: or one quality constraint; all hold: --target 50KB --target drop:0.5 is the
smallest file of at most 50 KB that keeps it.

examples:
  autocompress compress lenet5 --data mnist --target 4KB --out lenet5.safetensors
  autocompress compress resnet20 --data cifar10 --weights net.safetensors --target 20x --out small.safetensors
  autocompress compress lenet5 --data mnist --target drop:0.5 --out lenet5.safetensors
  autocompress compress mypkg.nets:make_net --data mypkg.data:loaders --target 1% --ignore "head.*" --out n.safetensors
"""


class _WithConfig(ArgumentParser):
    """A parser that takes options of --config FILE as if they had been given; those that are given stand."""

    _has_file = False

    def error(self, message: str) -> NoReturn:
        """Ends the program; where a file gave options, without the usage, which would hide what is wrong in it."""
        if self._has_file:
            self.exit(2, f"{self.prog}: error: {message}\n")
        super().error(message)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Returns what argparse makes of the arguments and of the file."""
        given = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(self._with_file(given), namespace)

    def _with_file(self, given: list[str]) -> list[str]:
        option = "--config"
        place = next((n for n, word in enumerate(given) if word.partition("=")[0] == option), None)
        if place is None or option not in self._option_string_actions:
            return given
        self._has_file = True
        path = given[place].partition("=")[2] or (given[place + 1] if place + 1 < len(given) else "")
        known = {action.dest: action for action in self._actions if action.dest not in ("help", "config")}
        words, first = [], []
        for name, value in self._read(path).items():
            action = known.get(name.replace("-", "_"))
            if action is None:
                self.error(f"--config {path!r} has {name!r}; it may have {', '.join(sorted(known))}")
            if not action.option_strings:  # MODEL, which comes first where it is given
                first = [] if given and not given[0].startswith("-") else [str(value)]
            elif not any(word.partition("=")[0] in action.option_strings for word in given):
                for each in value if isinstance(value, list) else [value]:
                    flag = action.option_strings[-1]
                    words += [flag] * (each is True) if isinstance(each, bool) else [f"{flag}={each}"]
        return first + given[: 1 if not first else 0] + words + given[1 if not first else 0 :]

    def _read(self, path: str) -> dict[str, Any]:
        """Returns the options in a TOML file, or under `config` in a JSON record."""
        try:
            with open(path, "rb") as file:
                found = json.load(file) if path.endswith(".json") else tomllib.load(file)
        except OSError as error:
            self.error(f"--config {path!r} cannot be read: {error.strerror}")
        except ValueError as error:
            self.error(f"--config {path!r} is neither TOML nor a JSON record: {error}")
        found = found.get("config") if path.endswith(".json") and isinstance(found, dict) else found
        if not isinstance(found, dict):
            self.error(f"--config {path!r} has no 'config': it must be a record of compress --json, or TOML")
        return found


def build_parser() -> ArgumentParser:
    """Returns the parser; `command` of what it parses is the name of the command."""
    parser = ArgumentParser(
        prog="autocompress",
        description="Compress a trained PyTorch network to a file of the size you ask for.",
        epilog=EXAMPLES,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"autocompress {metadata.version('autocompress')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_WithConfig)
    _add_compress(commands)
    _add_curve(commands)
    _add_inspect(commands)
    _add_evaluate(commands)
    _add_export(commands)
    _add_energy(commands)
    return parser


def _add_compress(commands: _SubParsersAction[_WithConfig]) -> None:
    parser = commands.add_parser(
        "compress",
        help="train a network into a file of the size asked for",
        description=COMPRESS,
        formatter_class=RawDescriptionHelpFormatter,
    )
    _add_task(parser)
    parser.add_argument(
        "--target", required=True, action="append", help="what is asked for, see above; may be repeated: all hold"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="the .safetensors file to write")
    _add_run(parser)
    parser.add_argument(
        "--resume",
        type=Path,
        metavar="DIR",
        help="keep checkpoints in DIR, and go on from them: the same command starts and continues a run",
    )
    parser.add_argument(
        "--report",
        type=Path,
        metavar="DIR",
        help="write pictures of the run into DIR: page.html, which needs nothing else, and its numbers as CSV and JSON",
    )
    _add_cluster(parser, "the workers run")
    parser.add_argument(
        "--workers",
        type=positive,
        metavar="N",
        help="so many processes train the network together by Ray Train, each on its part of every batch",
    )


def _add_curve(commands: _SubParsersAction[_WithConfig]) -> None:
    parser = commands.add_parser(
        "curve",
        help="compress a network to several targets: accuracy against bytes, as table, figure and page",
        description=CURVE,
        formatter_class=RawDescriptionHelpFormatter,
    )
    _add_task(parser)
    parser.add_argument(
        "--target", required=True, action="append", help="of one point, as for compress; repeated, one for each point"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="the folder of the points and the page")
    _add_cluster(parser, "the points are computed")
    _add_run(parser)


def _add_task(parser: ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    parser.add_argument("--data", required=True, help=DATA)
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help='options from a TOML file (target = ["50KB"]), or from a record of compress --json; what is given beside '
        "it stands",
    )


def _add_run(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="trained weights to start from (.safetensors or .pt state_dict); without it those beside the "
        "configuration of hf:PATH, else a reference network is trained first and kept for the next time",
    )
    parser.add_argument(
        "--epochs",
        type=not_negative,
        metavar="N",
        help="length of the compression (default: by model); 0 = no training: pruned and quantized at once",
    )
    _add_recipe(parser)
    parser.add_argument("--seed", type=seed, default=0, metavar="S", help="of everything random (default: 0)")
    parser.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="GLOB",
        help='parameters or modules not to compress, such as "head.*" (may be repeated)',
    )
    parser.add_argument(
        "--energy-model", type=Path, metavar="FILE", help="of `autocompress energy fit`, for energy-channels targets"
    )
    _add_scores(parser)
    _add_common(parser)
    parser.add_argument(
        "--no-progress", action="store_true", help="no progress bar, nor a line per epoch where stderr is no terminal"
    )


def _add_cluster(parser: ArgumentParser, what: str) -> None:
    parser.add_argument(
        "--ray-address",
        metavar="ADDRESS",
        help=f"HOST:PORT of a Ray cluster, or auto: {what} there; DIR is then a folder that all nodes see",
    )


def _add_recipe(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--learning-rate",
        type=rate,
        metavar="R",
        help="peak of the schedule while it is compressed (default: by model; of one's own, found in a range test)",
    )
    parser.add_argument(
        "--batch-size",
        type=positive,
        metavar="N",
        help="examples per step while it is compressed, of data known by name (default: by model)",
    )


def _add_inspect(commands: _SubParsersAction[_WithConfig]) -> None:
    parser = commands.add_parser("inspect", help="show what is in a compressed file, layer by layer")
    _add_file(parser)
    parser.add_argument("--model", help=f"its network, for the names of the layers: {MODEL}")
    parser.add_argument("--data", help="the data it was made for, where MODEL depends on it (classes, input shape)")
    parser.add_argument("--loss", metavar="NAME", help="that it was made with, where the outputs depend on it")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout and nothing else there")


def _add_evaluate(commands: _SubParsersAction[_WithConfig]) -> None:
    parser = commands.add_parser("evaluate", help="measure the accuracy of a compressed file")
    _add_file(parser)
    parser.add_argument("--model", required=True, help=MODEL)
    parser.add_argument("--data", required=True, help=DATA)
    parser.add_argument("--split", choices=["test", "validation"], default="test", help="default: test")
    _add_scores(parser)
    _add_common(parser)


def _add_export(commands: _SubParsersAction[_WithConfig]) -> None:
    parser = commands.add_parser("export", help="write the network of a compressed file as dense ONNX or PyTorch file")
    _add_file(parser)
    parser.add_argument("--model", required=True, help=MODEL)
    parser.add_argument(
        "--to",
        required=True,
        choices=["onnx", "pt"],
        help="onnx: a dense model, checked with onnxruntime; pt: a plain state_dict for torch.load",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="the file to write")
    parser.add_argument("--data", help="the data it was made for: tells the number of classes and an input's shape")
    parser.add_argument("--loss", metavar="NAME", help="that it was made with, where the outputs depend on it")
    parser.add_argument(
        "--input-shape",
        type=_shape,
        metavar="N,N,...",
        help="shape of one input without the batch, such as 1,28,28: for ONNX, where MODEL does not tell it",
    )
    parser.add_argument(
        "--input-dtype",
        choices=["float32", "float64", "int64", "int32", "bool"],
        default="float32",
        help="type of the input of --input-shape; int64 for tokens (default: float32)",
    )
    parser.add_argument(
        "--int8",
        action="store_true",
        help="for ONNX: weights and activations in 8 bits (QDQ), a smaller file that runs faster; the ranges of "
        "activations come from the training data of --data",
    )
    parser.add_argument(
        "--shrink",
        action="store_true",
        help="for ONNX: leave out channels that nothing takes, as energy-channels: targets make them",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout and nothing else there")


def _add_energy(commands: _SubParsersAction[_WithConfig]) -> None:
    energy = commands.add_parser("energy", help="fit a model of a network's energy over its channels")
    actions = energy.add_subparsers(dest="action", required=True, metavar="ACTION")
    parser = actions.add_parser("fit", help="measure the network at random widths and fit a bilinear model")
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    parser.add_argument(
        "--meter",
        choices=["analytic", "nvml", "rapl"],
        default="analytic",
        help="analytic: an accelerator model, no device needed; nvml: an NVIDIA GPU; rapl: an Intel or AMD CPU under "
        "Linux (default: analytic)",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="the .json file to write, for compress --energy-model")
    parser.add_argument("--data", help="the data it is made for: tells the number of classes and an input's shape")
    parser.add_argument("--input-shape", type=_shape, metavar="N,N,...", help="shape of one input without the batch")
    parser.add_argument(
        "--samples", type=positive, metavar="N", help="widths to measure (default: 400 analytic, else 60)"
    )
    parser.add_argument("--batch", type=positive, default=32, metavar="N", help="inputs at a time (default: 32)")
    parser.add_argument("--seed", type=seed, default=0, metavar="S", help="of the widths (default: 0)")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout and nothing else there")


def _add_file(parser: ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="a file written by autocompress compress")


def _add_scores(parser: ArgumentParser) -> None:
    parser.add_argument("--loss", metavar="NAME", help=LOSS)
    parser.add_argument("--metric", metavar="NAME", help=METRIC)


def _add_common(parser: ArgumentParser) -> None:
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: a GPU where there is one)")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout and nothing else there")


def _shape(text: str) -> tuple[int, ...]:
    """Returns the shape written as `1,28,28` or `1x28x28`."""
    parts = text.replace("x", ",").split(",")
    if not all(part.strip().isascii() and part.strip().isdigit() and 0 < int(part) < 2**24 for part in parts):
        raise ArgumentTypeError(f"{text!r} is not a shape such as 1,28,28")
    return tuple(int(part) for part in parts)
