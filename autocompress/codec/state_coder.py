"""The stream of a whole network: kinds, weight tensors, grid tensors, and everything else verbatim."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autocompress.codec.adaptive_models import Integers, Symbols, blocks
from autocompress.codec.codebook_coder import CodebookModels, code_step
from autocompress.codec.kernel_coder import KernelModels, code_kernels, code_kind
from autocompress.codec.range_coder import Array, BitMeter, Coder, Decoder, Encoder, Meter
from autocompress.codec.weight_coder import Choice, WeightModels, code_weight
from autocompress.errors import CorruptArtifactError, InvalidInputError
from autocompress.network.compressed_tensors import CompressedState, GridTensor, QuantizedTensor
from autocompress.network.kernel_tensor import KernelTensor

if TYPE_CHECKING:
    from autocompress.codec.compiled_coder import CompiledEncoder

CODED, GRID, RAW = range(3)
# Their order is part of the format: only append.
_DTYPES = (
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool, torch.complex64, torch.complex128,
)  # fmt: skip
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
_USUAL = {"": torch.float32, **dict.fromkeys(_BUFFERS, torch.float32), "num_batches_tracked": torch.int64}
Bytes = NDArray[np.uint8]
T = TypeVar("T")
_VERBATIM, _CONSTANT, _SAME_CONSTANT = range(3)


@dataclass(frozen=True)
class Entry:
    """One tensor of a state_dict: its name and shape."""

    name: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


def entries_of(state: CompressedState) -> list[Entry]:
    """Returns the entries of a state in the order of the stream: coded, grid, raw."""
    quantized = [Entry(name, tensor.shape) for name, tensor in state.quantized.items()]
    grid = [Entry(name, tuple(tensor.levels.shape)) for name, tensor in state.grid.items()]
    return quantized + grid + [Entry(name, tuple(tensor.shape)) for name, tensor in state.raw.items()]


def has_kernels(state: CompressedState) -> bool:
    """Says whether any tensor has a codebook of kernels; then each says of which kind its own is."""
    return any(isinstance(tensor, KernelTensor) for tensor in state.quantized.values())


# Loading the compiled coder costs about as much as coding so many elements without it.
COMPILED_FROM = 1 << 18


class _Coders(NamedTuple):
    encoder: Callable[[], Encoder | CompiledEncoder]
    decoder: Callable[[bytes], Coder]
    meter: Callable[[], BitMeter]


PLAIN = _Coders(Encoder, Decoder, Meter)


def _coders(entries: Sequence[Entry]) -> _Coders:
    """Returns the compiled coders where they pay and numba is there, else the others: both write the same streams."""
    if sum(entry.elements for entry in entries) >= COMPILED_FROM:
        with contextlib.suppress(ImportError, RuntimeError):  # the latter where numba finds no folder to keep code in
            from autocompress.codec import compiled_coder as compiled

            return _Coders(compiled.CompiledEncoder, compiled.CompiledDecoder, compiled.CompiledMeter)
    return PLAIN


def _run(entries: Sequence[Entry], work: Callable[[_Coders], T]) -> T:
    """Returns what work with the right coders returns; with the others where numba cannot keep what it compiles."""
    coders = _coders(entries)
    try:
        return work(coders)
    except OSError:  # no room on the disk
        if coders is PLAIN:
            raise
        return work(PLAIN)


def encode_stream(state: CompressedState, choices: dict[str, Choice] | None = None) -> bytes:
    """Returns the stream of a state.

    Args:
        state: what is written.
        choices: models of the positions by tensor, chosen for a state like this one; those that are missing are chosen
            for this one, which takes several times as long as writing it, and added. None: all.

    Raises:
        InvalidInputError: values that the format cannot hold exactly.
    """

    def written(coders: _Coders) -> bytes:
        encoder = coders.encoder()
        _code_state(encoder, entries_of(state), state, choices=choices, kernels=has_kernels(state))
        return encoder.finish()

    return _run(entries_of(state), written)


def code_length(state: CompressedState) -> dict[tuple[str, str], float]:
    """Returns the ideal length in bits by (part, tensor name), under the coder's own model.

    Parts: "header", "codebook", "positions", "codes", "grid", "raw". Their sum is the length of the stream but for
    the last word.
    """

    def measured(coders: _Coders) -> dict[tuple[str, str], float]:
        meter = coders.meter()
        _code_state(meter, entries_of(state), state, kernels=has_kernels(state))
        return meter.booked

    return _run(entries_of(state), measured)


def decode_stream(
    data: bytes, entries: Sequence[Entry], aliases: dict[str, str], *, kernels: bool = False
) -> CompressedState:
    """Returns the state in a stream.

    Args:
        data: the stream.
        entries: in the order of the state_dict.
        aliases: of that state.
        kernels: whether the tensors say of which kind their codebooks are.

    Raises:
        CorruptArtifactError: no encoder wrote this stream.
    """
    return _run(entries, lambda its: _code_state(its.decoder(data), list(entries), None, aliases, kernels=kernels))


def decode_kinds(data: bytes, entries: Sequence[Entry]) -> list[Entry]:
    """Returns the entries reordered as in the stream (coded, grid, raw); reads its first bits only."""
    kinds = _code_kinds(Decoder(data), list(entries), None)
    return sorted(entries, key=lambda entry: kinds[entry.name])


def _code_kinds(coder: Coder, entries: list[Entry], state: CompressedState | None) -> dict[str, int]:
    """Codes which tensor is what, in the order of the names, which needs no state_dict. Returns kinds by name."""
    coder.part("header", "")
    models = [_expecting(3, guess) for guess in range(3)]
    kinds = {}
    for entry in sorted(entries, key=lambda entry: entry.name):
        guess = RAW if entry.name.endswith(_BUFFERS) else CODED if len(entry.shape) > 1 else GRID
        kind = CODED
        if state is not None:
            kind = CODED if entry.name in state.quantized else GRID if entry.name in state.grid else RAW
        kinds[entry.name] = int(models[guess].code(coder, np.array([kind], np.int64))[0])
    return kinds


def _expecting(size: int, guess: int) -> Symbols:
    """Returns a model that has seen `guess` a few times."""
    model = Symbols(size)
    model.counts[0, guess] = 8
    return model


def _code_state(
    coder: Coder,
    entries: list[Entry],
    state: CompressedState | None,
    aliases: dict[str, str] | None = None,
    choices: dict[str, Choice] | None = None,
    kernels: bool = False,
) -> CompressedState:
    """Codes a state, or with `state=None` decodes one."""
    kinds = _code_kinds(coder, entries, state)
    result = CompressedState(aliases=dict(aliases or {}))
    weights = WeightModels(chosen={} if choices is None else choices)
    grids = _GridModels(weights.codebooks)
    raws = _RawModels()
    kernel_models = KernelModels() if kernels else None
    for entry in (entry for entry in entries if kinds[entry.name] == CODED):
        tensor = state.quantized[entry.name] if state else None
        if kernel_models is not None and code_kind(coder, entry.name, tensor, kernel_models):
            given = tensor if isinstance(tensor, KernelTensor) else None
            found = code_kernels(coder, entry.name, entry.shape, given, kernel_models, weights)
            result.quantized[entry.name] = found
        else:
            scalar = tensor if isinstance(tensor, QuantizedTensor) else None
            result.quantized[entry.name] = code_weight(coder, entry.name, entry.shape, scalar, weights)
    live = dict(zip(result.quantized, weights.live, strict=True))
    for entry in (entry for entry in entries if kinds[entry.name] == GRID):
        rows = live.get(entry.name.rpartition(".")[0] + ".weight")
        result.grid[entry.name] = grids.code(coder, entry, state.grid[entry.name] if state else None, rows)
    for entry in (entry for entry in entries if kinds[entry.name] == RAW):
        result.raw[entry.name] = raws.code(coder, entry, state.raw[entry.name] if state else None)
    return result


class _GridModels:
    """Codes grid tensors; tensors of one role (the last part of the name) share their statistics."""

    def __init__(self, steps: CodebookModels) -> None:
        self._steps = steps
        self._levels: dict[str, Integers] = {}

    def code(self, coder: Coder, entry: Entry, tensor: GridTensor | None, rows: Array | None) -> GridTensor:
        """Codes one tensor; `rows` [n] counts the nonzeros in each row of the weight it belongs to."""
        coder.part("grid", entry.name)
        step = code_step(coder, tensor.step if tensor else 0.0, self._steps, narrow=True)
        if tensor and tensor.step != step:
            raise InvalidInputError(f"{entry.name}: step {tensor.step} must be a positive bfloat16 number")
        levels = np.zeros(entry.elements, np.int64)
        if tensor:
            levels = tensor.levels.detach().cpu().reshape(-1).numpy().astype(np.int64)
            if levels.size and int(np.abs(levels).max()) > 32767:
                raise InvalidInputError(f"{entry.name}: levels must be within 32767, got {np.abs(levels).max()}")
        contexts = np.ones(entry.elements, np.int64)
        if rows is not None and len(rows) == entry.elements:
            contexts = (rows > 0).astype(np.int64)
        role = entry.name.rpartition(".")[2]
        model = self._levels.setdefault(role, Integers(2))
        levels = model.code(coder, levels, contexts)
        model.fade()
        if levels.size and int(np.abs(levels).max()) > 32767:
            raise CorruptArtifactError(f"{entry.name}: a level out of range")
        return GridTensor(torch.from_numpy(levels.astype(np.int32)).reshape(entry.shape), step)


class _RawModels:
    """Codes tensors bit for bit: one value where all are the same, else bytes by their place in the element."""

    def __init__(self) -> None:
        # What is usual for buffers of batch norm, and for all else.
        self._dtypes = {role: _expecting(len(_DTYPES), _DTYPES.index(dtype)) for role, dtype in _USUAL.items()}
        self._forms = {role: _expecting(3, _SAME_CONSTANT if role else _VERBATIM) for role in _USUAL}
        one = torch.tensor(1 - 1e-5)  # a folded batch norm: variance 1 - eps, so that its division is by one
        self._constants = {"running_var": _to_bytes(one)}

    def code(self, coder: Coder, entry: Entry, tensor: Tensor | None) -> Tensor:
        coder.part("raw", entry.name)
        if tensor is not None and tensor.dtype not in _DTYPES:
            raise InvalidInputError(f"{entry.name}: cannot store {tensor.dtype}")
        index = _DTYPES.index(tensor.dtype) if tensor is not None else 0
        role = entry.name.rpartition(".")[2]
        usual = role if role in _USUAL else ""
        dtype = _DTYPES[int(self._dtypes[usual].code(coder, np.array([index], np.int64))[0])]
        size = torch.empty(0, dtype=dtype).element_size()
        content = np.zeros((entry.elements, size), np.uint8) if tensor is None else _to_bytes(tensor)
        last = self._constants.get(role, np.zeros((1, size), np.uint8))
        last = last if last.shape[1] == size else np.zeros((1, size), np.uint8)
        form = _VERBATIM
        if tensor is not None and (content == content[:1]).all():
            form = _SAME_CONSTANT if (content == last).all() else _CONSTANT if len(content) else _VERBATIM
        form = int(self._forms[usual].code(coder, np.array([form], np.int64))[0])
        if form == _VERBATIM:
            content = _code_planes(coder, content)
        else:
            if form == _CONSTANT:
                last = coder.bits(8, content[:1].reshape(-1).astype(np.int64)).astype(np.uint8).reshape(1, size)
            self._constants[role] = last
            content = np.broadcast_to(last, content.shape)
        return _from_bytes(content, dtype, entry.shape)


def _code_planes(coder: Coder, content: Bytes) -> Bytes:
    """Codes bytes [n, size], each plane with its own adaptive counts."""
    content = content.copy()
    for plane in range(content.shape[1]):
        model = Symbols(256)
        for block in blocks(len(content), 4):
            content[block, plane] = model.code(coder, content[block, plane].astype(np.int64))
    return content


def _to_bytes(tensor: Tensor) -> Bytes:
    """Returns the bytes of a tensor, uint8 [elements, element size]."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return (
        flat.view(torch.uint8).reshape(len(flat), -1).numpy()
        if len(flat)
        else np.zeros((0, tensor.element_size()), np.uint8)
    )


def _from_bytes(content: Bytes, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    flat = torch.from_numpy(np.array(content, copy=True).reshape(-1))
    if dtype == torch.bool:
        return (flat != 0).reshape(shape)
    return flat.view(dtype).reshape(shape)
