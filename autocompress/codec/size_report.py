"""What a file is made of: the three sizes, per layer and in total."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from autocompress.codec.state_coder import code_length
from autocompress.network.compressed_tensors import CompressedState, WeightTensor, code_bits
from autocompress.network.kernel_tensor import KernelTensor
from autocompress.network.selection import original_bytes


@dataclass(frozen=True)
class LayerSize:
    """One compressed weight tensor.

    Attributes:
        name: its state_dict name.
        shape: its shape.
        kept: number of nonzeros.
        codebook: number of nonzero values, or of kernels.
        bits: index width of a nonzero, or of a kernel.
        kind: of its codebook, "scalar" or "kernel".
        length: weights that share one code: 1, or those of a kernel or of a group of inputs.
        bytes: its part of the file: positions, codes and codebook.
    """

    name: str
    shape: tuple[int, ...]
    kept: int
    codebook: int
    bits: int
    kind: str
    length: int
    bytes: float

    @property
    def codebook_text(self) -> str:
        """The codebook in a table: the number of values, or of kernels and their length."""
        return str(self.codebook) if self.kind == "scalar" else f"{self.codebook} of {self.length}"


@dataclass(frozen=True)
class SizeReport:
    """The sizes of one compressed network.

    Attributes:
        weight_data_bytes: bits times nonzeros of the compressed weight tensors; of kernels, codes and codebook.
        code_bytes: positions, codes and codebooks of the compressed weight tensors, in codes of fixed length.
        entropy_bytes: ideal code length of everything, under the coder's own model.
        file_bytes: the file.
        original_bytes: 4 bytes per floating-point element of the state_dict, shared storage once.
        compressible_weights: number of elements of the compressed weight tensors.
        layers: the compressed weight tensors.
        others: (name, how it is stored, bytes) of all other tensors.
        parts: ideal bytes by part: positions, codes, codebook, grid, raw, header.
        overhead_bytes: what the file holds beside the ideal code length: container, fingerprint, checksum, names.
    """

    weight_data_bytes: float
    code_bytes: float
    entropy_bytes: float
    file_bytes: int
    original_bytes: int
    compressible_weights: int
    layers: tuple[LayerSize, ...]
    others: tuple[tuple[str, str, float], ...]
    parts: dict[str, float]
    overhead_bytes: float

    def to_json(self) -> dict[str, Any]:
        layers = [dict(vars(layer), shape=list(layer.shape), bytes=round(layer.bytes, 1)) for layer in self.layers]
        return {
            "file_bytes": self.file_bytes,
            "entropy_bytes": round(self.entropy_bytes, 1),
            "weight_data_bytes": round(self.weight_data_bytes, 1),
            "code_bytes": round(self.code_bytes, 1),
            "original_bytes": self.original_bytes,
            "layers": layers,
            "others": [{"name": name, "kind": kind, "bytes": round(size, 1)} for name, kind, size in self.others],
            "overhead_bytes": round(self.overhead_bytes, 1),
        }

    def __str__(self) -> str:
        rows = [("layer", "shape", "kept", "codebook", "bits", "bytes")]
        for layer in self.layers:
            size = "x".join(map(str, layer.shape))
            rows.append((layer.name, size, str(layer.kept), layer.codebook_text, str(layer.bits), f"{layer.bytes:.0f}"))
        rows += [(name, kind, "", "", "", f"{size:.0f}") for name, kind, size in self._grouped_others()]
        rows.append(("container and header", "", "", "", "", f"{self.overhead_bytes + self.parts['header']:.0f}"))
        widths = [max(len(row[i]) for row in rows) for i in range(6)]
        table = [
            "  ".join(
                [row[0].ljust(widths[0]), row[1].ljust(widths[1])]
                + [c.rjust(w) for c, w in zip(row[2:], widths[2:], strict=True)]
            ).rstrip()
            for row in rows
        ]
        return "\n".join([*table, "", *self._totals()])

    def _totals(self) -> list[str]:
        weights = 4 * self.compressible_weights
        kernels = any(layer.kind == "kernel" for layer in self.layers)
        counted = "bits x nonzeros; of kernels, codes and codebooks" if kernels else "bits x nonzeros alone"
        return [
            f"weight data  {self.weight_data_bytes:>12,.0f} bytes  {_factor(weights, self.weight_data_bytes)} of "
            f"{self.compressible_weights:,} weights ({counted})",
            f"codes        {self.code_bytes:>12,.0f} bytes  {_factor(weights, self.code_bytes)} of "
            f"{self.compressible_weights:,} weights (positions, codes and codebooks, fixed length)",
            f"entropy      {self.entropy_bytes:>12,.0f} bytes  {_factor(self.original_bytes, self.entropy_bytes)} of "
            "all tensors (ideal code length of everything)",
            f"file         {self.file_bytes:>12,} bytes  {_factor(self.original_bytes, self.file_bytes)} of "
            "all tensors",
        ]

    def _grouped_others(self) -> list[tuple[str, str, float]]:
        """Returns the other tensors, those that cost under a byte together in one line per kind."""
        rows = [row for row in self.others if row[2] >= 1]
        for kind in dict.fromkeys(row[1] for row in self.others):
            small = [row for row in self.others if row[1] == kind and row[2] < 1]
            if small:
                rows.append((f"{len(small)} more", kind, sum(row[2] for row in small)))
        return rows


def size_report(state: CompressedState, data: bytes, module: nn.Module | None = None) -> SizeReport:
    """Returns the sizes of a state whose file is `data`.

    Args:
        state: what the file holds.
        data: the whole file.
        module: the network, compressed or not; the state says the same unless it leaves tensors out.
    """
    booked = code_length(state)
    parts: dict[str, float] = defaultdict(float)
    of_tensor: dict[str, float] = defaultdict(float)
    for (part, name), bits in booked.items():
        parts[part] += bits / 8
        of_tensor[name] += bits / 8
    layers = tuple(
        LayerSize(name, t.shape, t.nonzeros, len(t.values), t.bits, *_kind_of(t), of_tensor[name])
        for name, t in state.quantized.items()
    )
    others = [(name, "grid", of_tensor[name]) for name in state.grid]
    others += [(name, kind_of_raw(tensor), of_tensor[name]) for name, tensor in state.raw.items()]
    others += [(name, f"shared with {holder}", 0.0) for name, holder in state.aliases.items()]
    entropy_bytes = sum(booked.values()) / 8
    return SizeReport(
        weight_data_bytes=state.weight_data_bits / 8,
        code_bytes=code_bits(state.quantized.values()) / 8,
        entropy_bytes=entropy_bytes,
        file_bytes=len(data),
        original_bytes=original_bytes(module) if module and module.state_dict() else _state_bytes(state),
        compressible_weights=sum(math.prod(t.shape) for t in state.quantized.values()),
        layers=layers,
        others=tuple(others),
        parts={key: parts[key] for key in ("positions", "codes", "codebook", "grid", "raw", "header")},
        overhead_bytes=len(data) - entropy_bytes,
    )


def _kind_of(tensor: WeightTensor) -> tuple[str, int]:
    return ("kernel", tensor.length) if isinstance(tensor, KernelTensor) else ("scalar", 1)


def kind_of_raw(tensor: Tensor) -> str:
    """Returns how a tensor outside the codebooks stands in the file; folded statistics are constants."""
    constant = tensor.numel() > 1 and bool((tensor == tensor.flatten()[0]).all())
    return "constant" if constant else "kept as it is"


def _state_bytes(state: CompressedState) -> int:
    """Returns 4 bytes per floating-point element of a state."""
    counted = [math.prod(tensor.shape) for tensor in state.quantized.values()]
    counted += [tensor.levels.numel() for tensor in state.grid.values()]
    return 4 * sum(counted + [tensor.numel() for tensor in state.raw.values() if tensor.is_floating_point()])


def _factor(original: float, size: float) -> str:
    return f"{original / size:,.1f}x smaller" if size else "nothing kept"
