"""What every damaged or hostile file must end in: an error of ours or a sound state, in bounded time and memory."""

from __future__ import annotations

import time
import zlib
from pathlib import Path

import torch
from torch import nn

from autocompress.codec.file import decode_state, encode_state
from autocompress.codec.layout import Layout, layout_of
from autocompress.errors import CorruptArtifactError, InvalidInputError
from autocompress.network.compressed_tensors import CompressedState, QuantizedTensor, round_codebook, to_grid
from autocompress.network.kernel_tensor import kernel_tensor

SEEDS = Path(__file__).parent / "seeds"
SECONDS = 20.0  # for files of less than a kilobyte; decoding one takes milliseconds


def network() -> nn.Module:
    """Returns a network with a convolution, a norm with counters, and an embedding."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Embedding(7, 3), nn.Linear(12, 5))


def state_of(model: nn.Module, seed: int, values: int, *, kernels: bool = False) -> CompressedState:
    """Returns a random state of a network, with codebooks of so many values."""
    generator = torch.Generator().manual_seed(seed)
    state = CompressedState()
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point() or "running" in name:
            state.raw[name] = tensor.clone()
        elif tensor.ndim == 4 and kernels:
            count = tensor.numel() // 9
            codes = torch.randint(0, 2, (count,), generator=generator)
            state.quantized[name] = kernel_tensor(codes, torch.randn(2, 9, generator=generator), tuple(tensor.shape))
        elif tensor.ndim > 1:
            codes = torch.randint(0, values + 1, tensor.shape, generator=generator).to(torch.int16)
            codebook = round_codebook(torch.randn(values, generator=generator).sort().values)
            state.quantized[name] = QuantizedTensor(codes, codebook)
        else:
            state.grid[name] = to_grid(torch.randn(tensor.shape, generator=generator), 2**-5)
    return state


def write_seeds() -> None:
    """Writes the files that all mutations start from."""
    model = network()
    for number, (values, names, kernels) in enumerate(
        [(1, True, False), (4, True, False), (4, False, False), (12, False, False), (3, True, True), (3, False, True)]
    ):
        data = encode_state(state_of(model, number, values, kernels=kernels), names=names)
        (SEEDS / f"{number}.safetensors").write_bytes(data)


def seal(data: bytes) -> bytes:
    """Returns a file with the container and the checksum that belong to its bytes, so that damage goes deeper."""
    tensor = data[8 + int.from_bytes(data[:8], "little") :] if len(data) >= 8 else b""
    if len(tensor) < 9:
        return data
    tensor = tensor[:1] + zlib.crc32(tensor[:1] + tensor[5:]).to_bytes(4, "little") + tensor[5:]
    header = f'{{"w":{{"dtype":"U8","shape":[{len(tensor)}],"data_offsets":[0,{len(tensor)}]}}}}'.encode()
    return len(header).to_bytes(8, "little") + header + tensor


def check(data: bytes, layout: Layout) -> str:
    """Returns how a file ended: "refused", "of another network" or "read".

    Raises:
        AssertionError: it took too long, or what was read is no state of the network's shapes.
        Exception: whatever else the loader let through.
    """
    started = time.perf_counter()
    try:
        state = decode_state(data, layout)
        outcome = "read"
    except CorruptArtifactError:
        outcome = "refused"
    except InvalidInputError:
        outcome = "of another network"
    assert time.perf_counter() - started < SECONDS, f"{time.perf_counter() - started:.0f} s"
    if outcome == "read":
        dense = state.dense()
        for entry in layout.entries:
            assert tuple(dense[entry.name].shape) == entry.shape, entry
        for name in [*state.quantized, *state.grid]:
            assert bool(torch.isfinite(dense[name]).all()), name
    return outcome


def seeds() -> list[bytes]:
    """Returns the files that mutations start from."""
    return [path.read_bytes() for path in sorted(SEEDS.glob("*.safetensors"))]


LAYOUT = layout_of(network())
