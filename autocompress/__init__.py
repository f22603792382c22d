"""Compress a trained PyTorch network to a file of the size you ask for.

import autocompress as ac

result = ac.compress(model, train=train_loader, val=val_loader, target="50KB")
result.save("net.safetensors")
net = ac.load("net.safetensors", into=make_model())
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from autocompress.errors import (
    AutocompressError,
    CorruptArtifactError,
    InfeasibleTargetError,
    InvalidInputError,
    TrainingDivergedError,
)
from autocompress.targets import (
    AccuracyDrop,
    CodeBits,
    Energy,
    FileSize,
    LossIncrease,
    Target,
    WeightBits,
    parse_target,
)

if TYPE_CHECKING:
    from autocompress.codec.file import load, read_metadata, read_state
    from autocompress.energy.channel_graph import shrink
    from autocompress.energy.network_energy import energy_of
    from autocompress.network.onnx_export import export_onnx
    from autocompress.solver.compression import compress
    from autocompress.solver.compressor import Compressor
    from autocompress.solver.result import Result
    from autocompress.training.checkpoint import Callback
    from autocompress.training.recipe import Recipe

__all__ = [
    "AccuracyDrop",
    "AutocompressError",
    "Callback",
    "CodeBits",
    "Compressor",
    "CorruptArtifactError",
    "Energy",
    "FileSize",
    "InfeasibleTargetError",
    "InvalidInputError",
    "LossIncrease",
    "Recipe",
    "Result",
    "Target",
    "TrainingDivergedError",
    "WeightBits",
    "compress",
    "energy_of",
    "export_onnx",
    "load",
    "parse_target",
    "read_metadata",
    "read_state",
    "shrink",
]

# What needs torch is imported when it is first asked for (PEP 562): `autocompress --help` does without.
_MODULES = {
    "Callback": "training.checkpoint",
    "Compressor": "solver.compressor",
    "Recipe": "training.recipe",
    "Result": "solver.result",
    "compress": "solver.compression",
    "energy_of": "energy.network_energy",
    "export_onnx": "network.onnx_export",
    "load": "codec.file",
    "read_metadata": "codec.file",
    "read_state": "codec.file",
    "shrink": "energy.channel_graph",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
