"""`autocompress compress`: a task, a reference network, a compressed file."""

from __future__ import annotations

import hashlib
import json
import logging
from argparse import Namespace
from pathlib import Path

import torch

from autocompress.compress import compress
from autocompress.compressor import Compressor
from autocompress.console.output import accuracy_lines, check_folder, check_output, to_json
from autocompress.console.start import starting_network
from autocompress.costs.channel_energy import ChannelEnergy
from autocompress.errors import InvalidInputError
from autocompress.targets import Target, only_target
from autocompress.task import Task, load_task
from autocompress.whole_file import write_whole

logger = logging.getLogger(__name__)

# In the folder of --resume, beside the checkpoints: which command they belong to.
COMMAND_FILE = "command.json"


def compress_command(options: Namespace) -> str:
    """Compresses a network into the file `options.out` and returns the report, or the JSON object.

    Everything that can be wrong with the command is found before anything is trained.

    Raises:
        InvalidInputError, InfeasibleTargetError: the command asks for what cannot be.
    """
    target = only_target(options.target)
    check_output(options.out, (".safetensors",), inputs=(options.weights,))
    task = load_task(options.model, options.data, device=options.device, seed=options.seed)
    check_target(task, target, options)
    if options.resume is not None:
        claim_folder(options.resume, options, target)
    model = starting_network(
        task, options.weights, seed=options.seed, device=options.device, progress=not options.no_progress
    )
    result = compress(
        model,
        train=task.train,
        val=task.validation,
        test=task.test,
        target=target,
        loss=task.loss,
        metric=task.metric,
        epochs=options.epochs,
        seed=options.seed,
        ignore=tuple(options.ignore),
        device=options.device,
        resume=options.resume,
        recipe=task.recipe,
        progress=not options.no_progress,
        energy_model=energy_model(options),
    )
    result.save(options.out)
    answer = result.to_json()
    if options.json:
        return to_json(answer | {"out": str(options.out)})
    size = f"{options.out}: {options.out.stat().st_size} bytes"
    return "\n".join([result.report(), "", *accuracy_lines(answer), size])


def check_target(task: Task, target: Target, options: Namespace) -> None:
    """Returns if the target can be met and there is something to compress: known before a reference is trained.

    Raises:
        InvalidInputError, InfeasibleTargetError: otherwise.
    """
    model = task.make_model()
    parameters = list(model.parameters())
    if not parameters:
        raise InvalidInputError(f"the model {options.model!r} has no parameters; there is nothing to compress")
    # The optimizer takes no step: this is for the checks that the compressor makes of itself.
    Compressor(
        model,
        torch.optim.SGD(parameters, lr=1.0),
        target=target,
        total_steps=1,
        ignore=tuple(options.ignore),
        example=task.input_example,
        energy_model=energy_model(options),
    )


def energy_model(options: Namespace) -> ChannelEnergy | None:
    """Returns the energy model of --energy-model, None where a command has none."""
    path: Path | None = getattr(options, "energy_model", None)
    return None if path is None else ChannelEnergy.load(path)


def _digest(path: Path | None) -> str | None:
    """Returns a fingerprint of a file, None where there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path and path.is_file() else None


def claim_folder(folder: Path, options: Namespace, target: Target) -> None:
    """Makes the folder of checkpoints and notes in it which command they belong to.

    Raises:
        InvalidInputError: it cannot be made or written, or it belongs to another command.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInputError(f"--resume {str(folder)!r}: cannot make this folder: {error.strerror}") from error
    check_folder(folder, f"--resume {str(folder)!r}")
    command = {
        "model": options.model,
        "data": options.data,
        "target": str(target),
        "epochs": options.epochs,
        "seed": options.seed,
        "ignore": sorted(options.ignore),
        "energy_model": _digest(getattr(options, "energy_model", None)),
        "weights": _digest(options.weights),
    }
    note = folder / COMMAND_FILE
    try:
        before = json.loads(note.read_text(encoding="utf-8")) if note.exists() else command
    except ValueError:
        before = {}
    other = [name for name in command if not isinstance(before, dict) or before.get(name) != command[name]]
    if other:
        raise InvalidInputError(
            f"--resume {str(folder)!r} holds the checkpoints of another command ({', '.join(other)} differ); "
            "give another folder, or the same command"
        )
    write_whole(note, json.dumps(command).encode())
