"""`autocompress compress`: a task, a reference network, a compressed file."""

from __future__ import annotations

import hashlib
import json
import logging
from argparse import Namespace
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from autocompress.cli.console import check_folder, check_output, save_or_keep, to_json, to_toml
from autocompress.codec.atomic_write import write_whole
from autocompress.energy.channel_model import ChannelEnergy
from autocompress.errors import InvalidInputError
from autocompress.integrations.ray_train import check_address, compress_on_workers
from autocompress.solver.compression import compress
from autocompress.solver.compressor import check_target
from autocompress.targets import Targets, combined
from autocompress.task import Task, load_task
from autocompress.task.named_data import load_data
from autocompress.task.named_models import own_weights
from autocompress.task.user_code import own_source
from autocompress.training.batches import default_device
from autocompress.training.reference import starting_network

logger = logging.getLogger(__name__)

# In the folder of --resume, beside the checkpoints: which command they belong to.
COMMAND_FILE = "command.json"


def compress_command(options: Namespace) -> str:
    """Compresses a network into the file `options.out` and returns the report, or the JSON object.

    Everything that can be wrong with the command is found before anything is trained.

    Raises:
        InvalidInputError, InfeasibleTargetError: the command asks for what cannot be.
    """
    target = combined(options.target)
    check_output(options.out, (".safetensors",), inputs=(options.weights,))
    if options.ray_address is not None:
        check_address(options.ray_address)
    task = task_of(options)
    check_target(task.make_model(), target, **checked(options, task))
    train = training_data(options, task)
    if options.report is not None:
        make_folder(options.report, "--report")
    if options.resume is not None:
        claim_folder(options.resume, options, target)
    where = {"seed": options.seed, "device": options.device, "progress": not options.no_progress}
    model = starting_network(task, weights_of(options), **where)
    asked = {"train": train, "target": target, "resume": options.resume, **arguments(options, task)}
    if options.workers is None and options.ray_address is None:
        result = compress(model, **asked)
    else:
        cluster = {"workers": options.workers or 1, "address": options.ray_address}
        result = compress_on_workers(compress, model, asked, **cluster, modules=modules_of(options))
    result.extra["config"] = config_of(options)
    save_or_keep(result.save, options.out)
    answer = result.to_json()
    if options.report is not None:
        result.save_report(options.report, f"{options.model} on {options.data}, {target}")
        write_whole(options.report / "run.toml", to_toml(answer["config"]).encode())
    if options.json:
        return to_json(answer | {"out": str(options.out)})
    size = f"{options.out}: {result.file_bytes} bytes"
    promise = [] if result.promise is None else [quality_line(result.promise)]
    return "\n".join([result.report(), *promise, size])


def task_of(options: Namespace) -> Task:
    """Returns the network and the data that a command names."""
    settings = {"loss": options.loss, "metric": options.metric, "device": options.device, "seed": options.seed}
    return load_task(options.model, options.data, **settings)


def weights_of(options: Namespace) -> Path | None:
    """Returns the file of the weights to start from: that of --weights, or what lies in an `hf:` folder."""
    return options.weights or own_weights(options.model)


def training_data(options: Namespace, task: Task) -> Iterable[Any]:
    """Returns the batches to train on: the task's, or of the size of --batch-size.

    Raises:
        InvalidInputError: the data are a function's, which makes its own batches.
    """
    if options.batch_size is None:
        return task.train
    if ":" in options.data and not options.data.startswith("folder:"):
        raise InvalidInputError(
            f"--batch-size is {options.batch_size}, but {options.data!r} makes its batches itself; set their size there"
        )
    where = default_device(options.device)
    return load_data(options.data, batch_size=options.batch_size, device=where, seed=options.seed).train


def checked(options: Namespace, task: Task) -> dict[str, Any]:
    """Returns what `check_target` wants to know beside network and target."""
    known = {"example": task.input_example, "energy_model": energy_model(options)}
    return {"ignore": tuple(options.ignore), **known}


def arguments(options: Namespace, task: Task) -> dict[str, Any]:
    """Returns the arguments of `compress` that a command's options stand for, but for data to train on and target."""
    recipe = task.recipe
    if options.learning_rate is not None:
        recipe = replace(recipe, compress_learning_rate=options.learning_rate)
    return {
        "val": task.validation,
        "test": task.test,
        "loss": task.loss,
        "metric": task.metric,
        "epochs": options.epochs,
        "seed": options.seed,
        "ignore": tuple(options.ignore),
        "device": options.device,
        "recipe": recipe,
        "progress": not options.no_progress,
        "energy_model": energy_model(options),
    }


def modules_of(options: Namespace) -> list[str]:
    """Returns the folders and files of the user's functions, which travel to a cluster."""
    return [source for name in (options.model, options.data) if (source := own_source(name)) is not None]


# Options that say what is done, not where it is written or shown.
CONFIG = (
    "model",
    "data",
    "target",
    "weights",
    "loss",
    "metric",
    "epochs",
    "learning_rate",
    "batch_size",
    "seed",
    "ignore",
    "energy_model",
)


def config_of(options: Namespace) -> dict[str, Any]:
    """Returns what --config takes back: the options of a command as plain values, without those not given."""
    given = {name: getattr(options, name, None) for name in CONFIG}
    return {n: str(v) if isinstance(v, Path) else v for n, v in given.items() if v is not None and v != []}


def quality_line(promise: Mapping[str, Any]) -> str:
    """Returns whether a promise was kept, as text."""
    outcome = "kept" if promise["kept"] else "NOT kept by any network that was seen; this one comes nearest"
    scores = " ".join(f"{name} {promise[key]:.4f}," for name, key in (("allowed", "limit"), ("reference", "reference")))
    return f"{promise['promise']}  {outcome}: {promise['measured']:.4f}, {scores} all on validation data"


def energy_model(options: Namespace) -> ChannelEnergy | None:
    """Returns the energy model of --energy-model, None where a command has none."""
    path: Path | None = getattr(options, "energy_model", None)
    return None if path is None else ChannelEnergy.load(path)


def _digest(path: Path | None) -> str | None:
    """Returns a fingerprint of a file, None where there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path and path.is_file() else None


def make_folder(folder: Path, option: str) -> None:
    """Makes a folder, and checks that it takes files.

    Raises:
        InvalidInputError: it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInputError(f"{option} {str(folder)!r}: cannot make this folder: {error.strerror}") from error
    check_folder(folder, f"{option} {str(folder)!r}")


def claim_folder(folder: Path, options: Namespace, target: Targets | None) -> None:
    """Makes the folder of checkpoints, or of a curve, and notes in it which command it belongs to.

    Raises:
        InvalidInputError: it cannot be made or written, or it belongs to another command.
    """
    option = "--out" if target is None else "--resume"
    make_folder(folder, option)
    changed = {name: getattr(options, name) for name in ("learning_rate", "batch_size", "loss", "metric")}
    command = {
        "model": options.model,
        "data": options.data,
        "target": None if target is None else str(target),
        "epochs": options.epochs,
        "seed": options.seed,
        "ignore": sorted(options.ignore),
        "energy_model": _digest(getattr(options, "energy_model", None)),
        "weights": _digest(weights_of(options)),
        **{name: value for name, value in changed.items() if value is not None},
    }
    note = folder / COMMAND_FILE
    if target is None and not note.exists() and any(folder.iterdir()):
        raise InvalidInputError(f"{option} {str(folder)!r} holds other files; give a new folder, or that of a curve")
    try:
        before = json.loads(note.read_text(encoding="utf-8")) if note.exists() else command
    except ValueError:
        before = {}
    known = before if isinstance(before, dict) else {}
    other = [name for name in {**command, **known} if not known or known.get(name) != command.get(name)]
    if other:
        raise InvalidInputError(
            f"{option} {str(folder)!r} holds the checkpoints of another command ({', '.join(other)} differ); "
            "give another folder, or the same command"
        )
    write_whole(note, json.dumps(command).encode())
