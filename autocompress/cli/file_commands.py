"""`autocompress inspect | evaluate | export`, what can be done with a compressed file; and `energy fit`."""

from __future__ import annotations

import dataclasses
import math
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.cli.console import check_output, percent, to_json
from autocompress.codec.atomic_write import replacing
from autocompress.codec.file import load, read_compressed, read_metadata
from autocompress.codec.size_report import size_report
from autocompress.energy.channel_graph import ANALYTIC_SAMPLES, ChannelGraph, shrink
from autocompress.energy.energy_meters import make_meter, measured_energy
from autocompress.errors import InvalidInputError
from autocompress.network.compressed_tensors import CompressedState
from autocompress.network.live_network import named_tensors
from autocompress.task import load_task
from autocompress.task.named_models import make_model
from autocompress.training.batches import examples_in, split_batch, to_device
from autocompress.training.checks import name_of
from autocompress.training.evaluation import evaluate

# Measurements of `energy fit`; fewer than the last say nothing of the error on those held out.
MEASURED_SAMPLES = 60
MIN_SAMPLES = 10
# Training examples that the ranges of int8 activations come from.
CALIBRATION_EXAMPLES = 512

# One image of the networks known by name, without the batch. A function of the user's own needs --data or the shape.
INPUT_SHAPES = {
    "lenet5": (1, 28, 28),
    "alexnet": (3, 32, 32),
    "resnet": (3, 32, 32),
    "torchvision:": (3, 224, 224),
    "timm:": (3, 224, 224),
}


def inspect_command(options: Namespace) -> str:
    """Returns the size report of a file, or it as a JSON object."""
    data = read_bytes(options.file)
    model = None if options.model is None else network_and_example(options)[0]
    state = read_compressed(options.file, model)
    report = size_report(state, data, nn.Module() if model is None else model)
    if model is None:
        report = dataclasses.replace(report, original_bytes=original_bytes(state))
    metadata = read_metadata(options.file)
    if options.json:
        return to_json({"file": str(options.file)} | report.to_json() | ({"metadata": metadata} if metadata else {}))
    return "\n".join([str(report), *(f"{_shown(key)}: {_shown(text)}" for key, text in metadata.items())])


def _shown(text: str) -> str:
    """Returns a text of somebody's file without what would steer a terminal, or look like lines of ours."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def original_bytes(state: CompressedState) -> int:
    """Returns 4 bytes per floating-point element of the network that a state came from, shared storage once."""
    raw = sum(tensor.numel() for tensor in state.raw.values() if tensor.is_floating_point())
    quantized = sum(math.prod(tensor.shape) for tensor in state.quantized.values())
    return 4 * (raw + quantized + sum(tensor.levels.numel() for tensor in state.grid.values()))


def evaluate_command(options: Namespace) -> str:
    """Returns the accuracy of a file on a split, as text or as a JSON object."""
    read_bytes(options.file)
    task = load_task(options.model, options.data, loss=options.loss, metric=options.metric, device=options.device)
    batches = task.test if options.split == "test" else task.validation
    if batches is None:
        raise InvalidInputError(f"--data {options.data!r} has no {options.split} split; try the other --split")
    model = load(options.file, into=task.make_model())
    outcome = evaluate(model, batches, loss=task.loss, metric=task.metric, device=options.device)
    metric = name_of(task.metric)
    if options.json:
        return to_json(
            {
                "file": str(options.file),
                "file_bytes": options.file.stat().st_size,
                "split": options.split,
                "examples": len(outcome.scores),
                f"{options.split}_accuracy": outcome.metric,
                f"{options.split}_loss": outcome.loss,
                "metric": metric,
            }
        )
    score = percent(outcome.metric) if metric == "accuracy" else f"{outcome.metric:.6g}"
    return f"{options.split} {metric}  {score}  ({len(outcome.scores)} examples)"


def export_command(options: Namespace) -> str:
    """Writes the network of a file as ONNX or as a plain state_dict and returns what was written."""
    check_output(options.out, (".onnx",) if options.to == "onnx" else (".pt", ".pth"), inputs=(options.file,))
    for option in ("int8", "shrink"):
        if getattr(options, option) and options.to != "onnx":
            raise InvalidInputError(f"--{option} is for --to onnx; a state_dict holds the tensors of MODEL as they are")
    if options.int8 and options.data is None:
        raise InvalidInputError("--int8 needs --data: the ranges of activations come from its training data")
    read_bytes(options.file)
    network, example = network_and_example(options)
    if options.to == "onnx" and options.input_shape is not None:
        example = random_input(options.input_shape, options.input_dtype)
    if options.to == "onnx" and example is None:
        raise InvalidInputError(
            f"the inputs of {options.model!r} are not known; give --data, or their shape such as --input-shape 3,32,32"
        )
    model = load(options.file, into=network)
    difference = None
    if options.to == "onnx":
        from autocompress.network.onnx_export import export_onnx

        if options.shrink:
            model = shrink(model, example)
        calibration = calibration_inputs(options) if options.int8 else None
        difference = export_onnx(model, example, options.out, calibration=calibration)
    else:
        save_state_dict(model, options.out)
    size = options.out.stat().st_size
    if options.json:
        return to_json({"file": str(options.file), "out": str(options.out), "bytes": size, "difference": difference})
    return f"{options.out}: {size} bytes, {'int8' if options.int8 else 'dense'}"


def calibration_inputs(options: Namespace) -> list[Any]:
    """Returns inputs of a few hundred training examples, as the network takes them."""
    found: list[Any] = []
    seen = 0
    for batch in load_task(options.model, options.data, loss=options.loss, scored=False).train:
        args, kwargs, _ = split_batch(to_device(batch, "cpu"))
        found.append(kwargs or (args[0] if len(args) == 1 else args))
        seen += examples_in(batch)
        if seen >= CALIBRATION_EXAMPLES:
            break
    return found


def network_and_example(options: Namespace) -> tuple[nn.Module, Any]:
    """Returns the network of --model, made for --data where that is given, and an input of it if one is known.

    The example is one input with a batch dimension of 1: a tensor, a tuple or a dict of keyword arguments.
    """
    if options.data is not None:
        task = load_task(options.model, options.data, loss=getattr(options, "loss", None), scored=False)
        return task.make_model(), task.input_example
    shape = next((shape for start, shape in INPUT_SHAPES.items() if options.model.startswith(start)), None)
    return make_model(options.model), None if shape is None else random_input(shape)


def random_input(shape: tuple[int, ...], dtype: str = "float32") -> Tensor:
    """Returns one input of this shape, [1, ...], the same at every call; of whole numbers 0 and 1, valid everywhere."""
    generator, kind = torch.Generator().manual_seed(0), getattr(torch, dtype)
    if kind.is_floating_point:
        return torch.randn(1, *shape, generator=generator, dtype=kind)
    return torch.randint(2, (1, *shape), generator=generator).to(kind)


def save_state_dict(model: nn.Module, path: Path) -> None:
    """Writes the dense state_dict with torch.save, on the CPU; the file appears only when it is whole."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in named_tensors(model).items()}
    with replacing(path) as temporary:
        torch.save(state, temporary)


def read_bytes(path: Path) -> bytes:
    """Returns the whole file.

    Raises:
        InvalidInputError: there is no such file, or it cannot be read.
    """
    if not path.is_file():
        raise InvalidInputError(f"there is no file {str(path)!r}")
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInputError(f"cannot read {str(path)!r}: {error.strerror}") from error


def fit_command(options: Namespace) -> str:
    """Fits the model, writes `options.out` where it is given, and returns what was found.

    Raises:
        InvalidInputError: there is no such meter here, or the network's channels cannot be followed.
    """
    if options.out is not None:
        check_output(options.out, (".json",))
    samples = options.samples or (ANALYTIC_SAMPLES if options.meter == "analytic" else MEASURED_SAMPLES)
    if samples < MIN_SAMPLES:
        raise InvalidInputError(f"--samples is {samples}; it must be at least {MIN_SAMPLES}")
    meter = None if options.meter == "analytic" else make_meter(options.meter)
    model, example = network_and_example(options)
    if options.input_shape is not None:
        example = random_input(options.input_shape)
    if example is None:
        raise InvalidInputError(
            f"the inputs of {options.model!r} are not known; give --data, or their shape such as --input-shape 3,32,32"
        )
    if meter is None:
        fitted = ChannelGraph(model, example).fitted_energy(options.seed, samples)
    else:
        fitted = measured_energy(model.to(meter.device), example, meter, samples, options.batch, options.seed)
    if options.out is not None:
        fitted.save(options.out)
    if options.json:
        return to_json({"model": options.model, "meter": options.meter, "samples": samples, **vars(fitted)})
    groups = ", ".join(f"{name} ({count})" for name, count in zip(fitted.groups, fitted.channels, strict=True))
    where = f"written to {options.out}" if options.out is not None else "not kept: --out FILE writes it"
    return (
        f"groups of channels: {groups}\ndense energy: {fitted.dense:.6g} {fitted.unit}\n"
        f"held-out mean relative error: {percent(fitted.held_out_error)} of {samples} measurements\n{where}"
    )
