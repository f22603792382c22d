"""From a state to the bytes of a file and back: a safetensors container with one uint8 tensor, and a checksum.

Layout of the tensor: 1 byte (format version * 2 + whether a name table follows), 4 bytes CRC-32 of all the rest of
the tensor and that byte, 4 bytes fingerprint of names and shapes, the name table if any (its length as a varint), the
stream. The container is accepted only in the one spelling that is written here, so that no altered byte goes unseen.
"""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from autocompress.codec.atomic_write import write_whole
from autocompress.codec.layout import ELEMENTS_PER_BYTE, Layout, fingerprint, layout_of, read_table, write_table
from autocompress.codec.state_coder import decode_kinds, decode_stream, encode_stream, entries_of, has_kernels
from autocompress.codec.weight_coder import Choice
from autocompress.errors import CorruptArtifactError, InvalidInputError
from autocompress.network.compressed_tensors import CompressedState
from autocompress.network.live_network import named_tensors
from autocompress.network.network_state import fill

# 2: compressed tensors may have codebooks of kernels. Files without any are still written as version 1.
VERSIONS = (1, 2)
# The safetensors header has 8 bytes of length and these characters, which grow with the digits of the size.
_JSON = '{{"w":{{"dtype":"U8","shape":[{size}],"data_offsets":[0,{size}]}}}}'
_FIXED_BYTES = 9
# Names and shapes of a network, deflated; the largest published ones need less than a hundredth of this.
MAX_TABLE_BYTES = 1 << 20


@dataclass(frozen=True)
class Payload:
    """What the container holds.

    Attributes:
        fingerprint: 4 bytes that tell for which names and shapes the stream was written.
        table: the deflated name table, or None.
        stream: the entropy-coded state.
        version: of the stream.
    """

    fingerprint: bytes
    table: bytes | None
    stream: bytes
    version: int = 1


def pack(payload: Payload) -> bytes:
    """Returns the whole file."""
    rest = payload.fingerprint
    if payload.table is not None:
        rest += _varint(len(payload.table)) + payload.table
    rest += payload.stream
    first = bytes([payload.version * 2 + (payload.table is not None)])
    tensor = first + zlib.crc32(first + rest).to_bytes(4, "little") + rest
    header = _header(len(tensor))
    return len(header).to_bytes(8, "little") + header + tensor


def unpack(data: bytes) -> Payload:
    """Returns what a file holds, after checking every byte of it.

    Raises:
        CorruptArtifactError: truncated, altered, of a later version, or never one of our files.
    """
    tensor = _tensor_of(data)
    first, checksum, rest = tensor[0], tensor[1:5], tensor[5:]
    if zlib.crc32(tensor[:1] + rest).to_bytes(4, "little") != checksum:
        raise CorruptArtifactError("the checksum does not match: the file was altered or damaged")
    version = first >> 1
    if version not in VERSIONS:
        raise CorruptArtifactError(f"format version {version}, but this release reads versions up to {VERSIONS[-1]}")
    fingerprint, rest = rest[:4], rest[4:]
    if not first & 1:
        return Payload(fingerprint, None, rest, version)
    length, used = _read_varint(rest)
    if length > min(MAX_TABLE_BYTES, len(rest) - used):
        raise CorruptArtifactError(f"a name table of {length} bytes, but {len(rest) - used} bytes follow")
    return Payload(fingerprint, rest[used : used + length], rest[used + length :], version)


def _header(size: int) -> bytes:
    return _JSON.format(size=size).encode()


def _tensor_of(data: bytes) -> bytes:
    if len(data) < 8:
        raise CorruptArtifactError(f"{len(data)} bytes are no safetensors file: it is truncated or something else")
    length = int.from_bytes(data[:8], "little")
    size = len(data) - 8 - length
    if size < _FIXED_BYTES or data[8 : 8 + length] != _header(size):
        raise CorruptArtifactError("truncated, or not a file written by autocompress")
    return data[8 + length :]


def _varint(number: int) -> bytes:
    """Returns a number >= 0 in groups of seven bits, lowest first."""
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def _read_varint(data: bytes) -> tuple[int, int]:
    """Returns (number, bytes used)."""
    number = 0
    for i, byte in enumerate(data[:5]):
        number |= (byte & 127) << (7 * i)
        if byte < 128:
            return number, i + 1
    raise CorruptArtifactError("the length of the name table is damaged")


# Names go along unasked where they cost at most this fraction of the file.
_NAMES_FRACTION = 0.01


def encode_state(
    state: CompressedState, *, names: bool | None = None, choices: dict[str, Choice] | None = None
) -> bytes:
    """Returns the whole file of a state.

    Args:
        state: each of its three dicts in the order of the network's state_dict.
        names: whether names and shapes go into the file, so that it can be read without the model; None: where they
            cost at most 1 % of it.
        choices: see `state_coder.encode_stream`; for states much like one that was written before.

    Raises:
        InvalidInputError: values that the format cannot hold exactly.
    """
    stream = encode_stream(state, choices)
    mark = fingerprint(entries_of(state), state.aliases)
    version = 2 if has_kernels(state) else 1
    plain = pack(Payload(mark, None, stream, version))
    if names is False:
        return plain
    named = pack(Payload(mark, write_table(state), stream, version))
    if names is None and len(named) - len(plain) > _NAMES_FRACTION * len(named):
        return plain
    return named


def decode_state(data: bytes, layout: Layout | None = None) -> CompressedState:
    """Returns the state in a file.

    Args:
        data: the whole file.
        layout: `layout_of(model)`; needed where the file has no name table, compared with it where it has.

    Raises:
        InvalidInputError: the file is sound but was written for another network, or needs a model and none is given.
        CorruptArtifactError: the file is damaged, or no encoder wrote it.
    """
    payload = unpack(data)
    table = None if payload.table is None else read_table(payload.table)
    if layout is None and table is None:
        raise InvalidInputError("the file holds no tensor names: give the model that it was made from")
    chosen = layout or table
    assert chosen is not None
    if layout is None and chosen.elements > ELEMENTS_PER_BYTE * len(data):
        raise CorruptArtifactError(
            f"a file of {len(data)} bytes announces {chosen.elements:,} elements; without a model at most "
            f"{ELEMENTS_PER_BYTE:,} are read for each byte: if it is sound, give the model that it was made from"
        )
    ordered = decode_kinds(payload.stream, chosen.entries)
    if fingerprint(ordered, chosen.aliases) != payload.fingerprint:
        if layout is None:
            raise CorruptArtifactError("the name table does not belong to the rest of the file")
        raise InvalidInputError(f"the file was written for another network: {_difference(layout, table)}")
    state = decode_stream(payload.stream, ordered, chosen.aliases, kernels=payload.version > 1)
    values = {name: tensor.values for name, tensor in state.quantized.items()}
    for name, tensor in (values | {name: grid.dense() for name, grid in state.grid.items()}).items():
        if not bool(tensor.isfinite().all()):
            raise CorruptArtifactError(f"{name!r} has values beyond what a float32 number holds")
    return state


def _difference(layout: Layout, table: Layout | None) -> str:
    """Returns what tells the model's layout from the file's, as far as that is known."""
    given = f"the model given has {len(layout.entries)} tensors of {layout.elements} elements"
    if table is None:
        return f"{given}, and their names and shapes are not those of the file"
    ours, theirs = ({entry.name: entry.shape for entry in each.entries} for each in (layout, table))
    for name, shape in theirs.items():
        if name not in ours:
            return f"{given}, but no {name!r} of shape {list(shape)} as in the file"
        if ours[name] != shape:
            return f"{name!r} has shape {list(ours[name])} in the model and {list(shape)} in the file"
    extra = [name for name in ours if name not in theirs]
    return f"{given}; {extra[0]!r} is not in the file" if extra else f"{given}; order or shared tensors differ"


def save_artifact(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes a file whole or not at all: to a temporary one in the same folder, which then takes the name.

    Raises:
        InvalidInputError: the folder does not exist or cannot be written.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise InvalidInputError(f"cannot write {path}: there is no folder {path.parent}")
    try:
        write_whole(path, data)
    except OSError as error:
        raise InvalidInputError(f"cannot write {path}: {error.strerror or error}") from error


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Returns the content of a file.

    Raises:
        InvalidInputError: it does not exist or cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InvalidInputError(f"cannot read {path}: {error.strerror or error}") from error


def read_state(path: str | os.PathLike[str], model: nn.Module | None = None) -> CompressedState:
    """Returns the state in a file; `model` (only its names and shapes count) is needed where the file has no names.

    Raises:
        InvalidInputError: no such file, a file for another network, or a model is needed.
        CorruptArtifactError: a damaged file.
    """
    return decode_state(read_bytes(path), None if model is None else layout_of(model))


def load(path: str | os.PathLike[str], into: nn.Module) -> nn.Module:
    """Fills a module with the weights of a file and returns it in eval mode.

    The values are exactly those of the state that was saved, converted to each parameter's dtype and device.

    Raises:
        InvalidInputError: no such file, or a file for another network; the module is unchanged.
        CorruptArtifactError: a damaged file; the module is unchanged.
    """
    if not isinstance(into, nn.Module):
        kind = f"the class {into.__name__}" if isinstance(into, type) else f"a {type(into).__name__}"
        raise InvalidInputError(f"into is {kind}; it must be a torch.nn.Module, such as make_model()")
    absent = next((name for name, tensor in named_tensors(into).items() if tensor.is_meta), None)
    if absent is not None:
        raise InvalidInputError(
            f"{absent} of the network is on the meta device and holds no values; call to_empty(device='cpu') first"
        )
    return fill(into, read_state(path, into))
