"""A dense ONNX model from a network, in float32 or int8, checked against the network itself with onnxruntime.

int8: weights and activations between QuantizeLinear and DequantizeLinear, which runtimes turn into integer arithmetic.
The codebooks of a file lie on a uniform grid already, of 8 bits where a layer has at most 127 values, so that little is
lost by 8 bits for the weights of each channel; the ranges of activations come from examples.

Needs the packages of the extra `autocompress[onnx]`; nothing here is imported before they are asked for.
"""

from __future__ import annotations

import importlib.util
import inspect
import logging
import os
import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.codec.atomic_write import replacing
from autocompress.errors import AutocompressError, InvalidInputError
from autocompress.network.live_network import accepted_arguments, copy_network, refuse_unfinished, tensors_in

logger = logging.getLogger(__name__)

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# Two runtimes sum the same products in another order; this is far above that and far below what changes an answer.
RELATIVE_TOLERANCE = 1e-4
# Beyond this part of its largest output an int8 model is another network than the one given.
INT8_TOLERANCE = 0.5


def export_onnx(
    model: nn.Module, example: Any, path: str | os.PathLike[str], *, calibration: Iterable[Any] | None = None
) -> float:
    """Writes `model` as one self-contained ONNX file and returns how far onnxruntime's output is from PyTorch's.

    The first dimension of every input and output is the batch and stays free. Inputs are named as the arguments of
    `forward`, outputs as the keys of a dict. The file appears under its name only
    after the check.

    Args:
        model: the network; a copy on the CPU in eval mode is exported.
        example: its input, a tuple of its inputs, or a dict of them by argument name; batch first [n, ...], n >= 1.
        path: the file to write.
        calibration: inputs as `example`, a few hundred examples of the data: the file is int8 (Jacob et al. 2018,
            "Quantization and training of neural networks for efficient integer-arithmetic-only inference").

    Returns:
        Largest absolute difference of the outputs, as a part of the largest absolute output (1 if that is smaller).

    Raises:
        AutocompressError: a package is missing, PyTorch cannot export the network, or the outputs differ.
        InvalidInputError: the network does not take the example or returns no tensor, or the file cannot be written.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise AutocompressError(
            f'exporting to ONNX needs {", ".join(missing)}; install them with: pip install "autocompress[onnx]"'
        )
    refuse_unfinished(model)
    inputs = by_name(model, example)
    network = copy_network(model, device="cpu").eval()
    expected = _outputs(network, inputs)
    feeds = None if calibration is None else _feeds(model, calibration)
    path, allowed = Path(path), RELATIVE_TOLERANCE if feeds is None else INT8_TOLERANCE
    try:
        with replacing(path, ".onnx") as temporary:
            _write(network, inputs, str(temporary))
            _leave_out_notes(temporary)
            if feeds is not None:
                _quantize(temporary, feeds)
            difference = _difference(expected, inputs, str(temporary))
            if not difference <= allowed:
                raise AutocompressError(
                    f"the exported ONNX model answers differently from the network: by {difference:.2g} of its largest "
                    f"output, allowed is {allowed:.1g}; nothing was written"
                )
    except OSError as error:
        raise InvalidInputError(f"cannot write {str(path)!r}: {error.strerror or error}") from error
    logger.info("onnxruntime agrees with PyTorch to %.1e of the largest output", difference)
    return difference


def by_name(model: nn.Module, example: Any) -> dict[str, Tensor]:
    """Returns the model's inputs by argument name, on the CPU, each [n, ...] with n >= 2.

    Raises:
        InvalidInputError: the model's `forward` does not take these inputs.
    """
    if not isinstance(example, Mapping):
        parts = example if isinstance(example, tuple) else (example,)
        try:
            example = inspect.signature(model.forward).bind(*parts).arguments
        except TypeError as error:
            raise InvalidInputError(f"{type(model).__name__} does not take {len(parts)} inputs: {error}") from error
    else:
        example = accepted_arguments(model, example)
    other = [name for name, part in example.items() if not isinstance(part, Tensor)]
    if other:
        raise InvalidInputError(f"the inputs {', '.join(other)} of {type(model).__name__} are no tensors")
    empty = [name for name, part in example.items() if not part.ndim or not len(part)]
    if empty:
        raise InvalidInputError(f"the inputs {', '.join(empty)} hold no example; their first dimension is the batch")
    # Two examples at least: torch.export takes a dimension of one for a constant.
    return {name: torch.cat([part, part])[: max(2, len(part))].detach().cpu() for name, part in example.items()}


def _leave_out_notes(path: Path) -> None:
    """Takes out of a model where in the Python code each of its nodes came from: a third of an int8 file."""
    import onnx

    proto = onnx.load(str(path))
    for node in proto.graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    for value in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        value.ClearField("metadata_props")
    onnx.save(proto, str(path))


def _feeds(model: nn.Module, calibration: Iterable[Any]) -> list[dict[str, Any]]:
    """Returns inputs by name as numpy arrays.

    Raises:
        InvalidInputError: there are none, or the model does not take them.
    """
    feeds = [{name: part.numpy() for name, part in by_name(model, inputs).items()} for inputs in calibration]
    if not feeds:
        raise InvalidInputError("the calibration data hold no example; int8 needs some for the ranges of activations")
    return feeds


class _Feeds:
    """Gives onnxruntime's calibration one input after the other."""

    def __init__(self, feeds: list[dict[str, Any]]) -> None:
        self.left = iter(feeds)

    def get_next(self) -> dict[str, Any] | None:
        return next(self.left, None)


def _quantize(path: Path, feeds: list[dict[str, Any]]) -> None:
    """Turns a float32 model into an int8 one in its place: 8 bits for the weights of each channel, 8 for activations.

    Raises:
        AutocompressError: onnxruntime cannot quantize it.
    """
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    quiet = [each for name in ("", "onnxruntime.quantization") if not (each := logging.getLogger(name)).disabled]
    levels = [each.level for each in quiet]
    try:
        for each in quiet:
            each.setLevel(logging.ERROR)
        with tempfile.TemporaryDirectory(prefix="autocompress-int8-") as folder:
            ready = str(Path(folder) / "ready.onnx")
            quant_pre_process(str(path), ready, skip_symbolic_shape=True)  # batch norms become part of convolutions
            quantization.quantize_static(
                ready,
                str(path),
                _Feeds(feeds),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,  # the kernels of x86 for int8 by int8 are no faster
            )
    except OSError:
        raise
    except Exception as error:  # it raises what it likes
        raise AutocompressError(f"onnxruntime could not quantize this network: {error}") from error
    finally:
        for each, level in zip(quiet, levels, strict=True):
            each.setLevel(level)


@torch.no_grad()
def _outputs(network: nn.Module, inputs: dict[str, Tensor]) -> list[Tensor]:
    """Returns the tensors in the network's output.

    Raises:
        InvalidInputError: there are none, or the network does not take the inputs.
    """
    try:
        output = network(**inputs)
    except Exception as error:  # whatever the user's network raises
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InvalidInputError(f"the network does not take the example given: {reason}") from error
    found = tensors_in(output)
    if not any(tensor.numel() for tensor in found):
        raise InvalidInputError("the network's output holds no tensor to export; its forward must return some")
    return found


def _write(network: nn.Module, inputs: dict[str, Tensor], path: str) -> None:
    """Exports with the batch dimension free where the network allows it."""
    free = {0: torch.export.Dim.AUTO}
    flat = _FlatOutputs(network, list(inputs))
    with torch.no_grad():
        names = output_names(network(**inputs), list(inputs))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's own deprecations; what matters is checked afterwards
            torch.onnx.export(
                flat,
                tuple(inputs.values()),
                path,
                input_names=list(inputs),
                output_names=names,
                dynamo=True,
                external_data=False,
                dynamic_shapes=((free,) * len(inputs),),
                verbose=False,
            )
    except Exception as error:  # the exporter raises what it likes: its own types, asserts, errors of the model's code
        reason = str(error.__cause__ or error).strip().split("\n")[0]
        raise AutocompressError(f"PyTorch could not export this network to ONNX: {reason}") from error


def output_names(output: Any, inputs: Sequence[str]) -> list[str] | None:
    """Returns the names of an output's tensors: the keys of a dict of tensors, "output" of a single one; else None."""
    if isinstance(output, Tensor):
        return [_other_than("output", inputs)]
    if not isinstance(output, Mapping) or not all(isinstance(value, Tensor) for value in output.values()):
        return None
    return [_other_than(str(key), inputs) for key in output]


def _other_than(name: str, taken: Sequence[str]) -> str:
    return f"{name}_out" if name in taken else name


class _FlatOutputs(nn.Module):
    """A network with inputs in a row and its output's tensors in a row: ONNX knows neither names nor dataclasses."""

    def __init__(self, network: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.network, self.names = network, names

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Returns the tensors of the output, in their order."""
        return tuple(tensors_in(self.network(**dict(zip(self.names, inputs, strict=True)))))


def _difference(expected: list[Tensor], inputs: dict[str, Tensor], path: str) -> float:
    """Returns the largest difference between PyTorch's and onnxruntime's outputs, nan if one of them is nan."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = session.run(None, {name: part.numpy() for name, part in inputs.items()})
    if len(expected) != len(found):  # one tensor given out twice is one output there
        raise AutocompressError(
            f"the network gives {len(expected)} tensors and the exported model {len(found)}; nothing was written"
        )
    worst = 0.0
    for ours, theirs in zip(expected, found, strict=True):
        if not ours.numel():
            continue
        gap = float((ours - torch.from_numpy(theirs)).abs().max()) / max(1.0, float(ours.abs().max()))
        worst = gap if not gap <= worst else worst  # keeps a nan
    return worst
