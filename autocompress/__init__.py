"""Compress a trained PyTorch network to a file of the size you ask for.

import autocompress as ac

result = ac.compress(model, train=train_loader, val=val_loader, target="50KB")
result.save("net.safetensors")
net = ac.load("net.safetensors", into=make_model())
"""

from autocompress.codec.file import load
from autocompress.energy.channel_graph import shrink
from autocompress.energy.network_energy import energy_of
from autocompress.errors import (
    AutocompressError,
    CorruptArtifactError,
    InfeasibleTargetError,
    InvalidInputError,
    TrainingDivergedError,
)
from autocompress.solver.compression import compress
from autocompress.solver.compressor import Compressor
from autocompress.solver.result import Result
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

__all__ = [
    "AccuracyDrop",
    "AutocompressError",
    "CodeBits",
    "Compressor",
    "CorruptArtifactError",
    "Energy",
    "FileSize",
    "InfeasibleTargetError",
    "InvalidInputError",
    "LossIncrease",
    "Result",
    "Target",
    "TrainingDivergedError",
    "WeightBits",
    "compress",
    "energy_of",
    "load",
    "parse_target",
    "shrink",
]
