"""From a state to the bytes of a file and back: a safetensors container with one uint8 tensor, and a checksum.

Layout of the tensor: 1 byte (format version * 2 + whether a name table follows), 4 bytes CRC-32 of all the rest of
the tensor and that byte, 4 bytes fingerprint of names and shapes, the name table if any (its length as a varint), the
stream. The user's texts may stand in the header, with a checksum. The container is accepted only in the one spelling
that is written here, so that no altered byte goes unseen.
"""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

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
# Texts beside the tensor: their own checksum, and how long they may be.
CHECKSUM = "crc32"
MAX_METADATA_BYTES = 1 << 16
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


def _header(size: int, metadata: Mapping[str, str] | None = None) -> bytes:
    plain = _JSON.format(size=size).encode()
    if not metadata:
        return plain
    crc = f"{zlib.crc32(_plain_json(metadata)):08x}"
    return b'{"__metadata__":' + _plain_json({**metadata, CHECKSUM: crc}) + b"," + plain[1:]


def _tensor_of(data: bytes) -> bytes:
    _metadata_of(data)
    return data[8 + int.from_bytes(data[:8], "little") :]


def _metadata_of(data: bytes) -> dict[str, str]:
    """Returns the texts in a file's header, after checking that it is spelled as it is written here."""
    if len(data) < 8:
        raise CorruptArtifactError(f"{len(data)} bytes are no safetensors file: it is truncated or something else")
    length = int.from_bytes(data[:8], "little")
    size, header = len(data) - 8 - length, data[8 : 8 + length]
    metadata: dict[str, str] = {}
    if size >= _FIXED_BYTES and header.startswith(b'{"__metadata__":') and length <= 2 * MAX_METADATA_BYTES:
        try:
            metadata = dict(json.loads(header)["__metadata__"])
        except (ValueError, TypeError, KeyError, RecursionError):
            metadata = {}
        metadata.pop(CHECKSUM, None)
        if not all(isinstance(value, str) for value in metadata.values()):
            metadata = {}
    if size < _FIXED_BYTES or header != _header(size, metadata):
        raise CorruptArtifactError("truncated, or not a file written by autocompress")
    return metadata


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
        raise InvalidInputError(
            "the file holds no tensor names: give the model that it was made from, as in load(path, into=model), or "
            "save it with them: result.save(path, names=True)"
        )
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
    if not isinstance(path, str | os.PathLike):
        raise InvalidInputError(f"the path of the file is {path!r}; it must be a str or a Path")
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InvalidInputError(f"cannot read {path}: {error.strerror or error}") from error


def read_compressed(path: str | os.PathLike[str], model: nn.Module | None = None) -> CompressedState:
    """Returns the state in a file; `model` (only its names and shapes count) is needed where the file has no names.

    Raises:
        InvalidInputError: no such file, a file for another network, or a model is needed.
        CorruptArtifactError: a damaged file.
    """
    return decode_state(read_bytes(path), None if model is None else layout_of(model))


def read_state(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Returns the tensors in a file by name, a plain state_dict, without any network.

    That takes a file that holds names: `result.save(path, names=True)`, and where they are less than 1 % of a file
    they stand in it unasked.

    Raises:
        InvalidInputError: no such file, or one without names.
        CorruptArtifactError: a damaged file.
    """
    return dict(read_compressed(path).dense())


def load(path: str | os.PathLike[str], into: nn.Module, *, prefix: str | Mapping[str, str] | None = None) -> nn.Module:
    """Fills a module with the weights of a file and returns it in eval mode.

    The values are exactly those of the state that was saved, converted to each parameter's dtype and device.

    Args:
        path: the file.
        into: the module to fill.
        prefix: what stands before the names in the module, or else in the file: with "net" a file of a network fills
            the attribute `net` of a module, and one of such a module the network alone. Or prefixes in the file ->
            prefixes in the module, such as {"model.": "net."}. Tensors of the module under none are left as they are.

    Raises:
        InvalidInputError: no such file, or a file for another network; the module is unchanged.
        CorruptArtifactError: a damaged file; the module is unchanged.
    """
    if not isinstance(into, nn.Module):
        kind = f"the class {into.__name__}" if isinstance(into, type) else f"a {type(into).__name__}"
        raise InvalidInputError(f"into is {kind}; it must be a torch.nn.Module, such as make_model()")
    tensors = _named_as_in_file(named_tensors(into), prefix)
    absent = next((name for name, tensor in tensors.items() if tensor.is_meta), None)
    if absent is not None:
        raise InvalidInputError(
            f"{absent} of the network is on the meta device and holds no values; call to_empty(device='cpu') first"
        )
    data = read_bytes(path)
    try:
        state = decode_state(data, layout_of(tensors))
    except InvalidInputError as error:
        found = _fitting_prefix(data, into)
        text = str(error) if prefix is None else f"{error}, with prefix={prefix!r}"
        if found is not None:
            text += f"; it fits with prefix={found!r}" if found else "; it fits without a prefix"
        raise InvalidInputError(text) from error
    return fill(into, state, tensors)


def _named_as_in_file(tensors: dict[str, Tensor], prefix: str | Mapping[str, str] | None) -> dict[str, Tensor]:
    """Returns those of a module's tensors that a file has, under their names in the file.

    Raises:
        InvalidInputError: no name begins with a prefix.
    """
    parts = [part for pair in prefix.items() for part in pair] if isinstance(prefix, Mapping) else [prefix or ""]
    if not all(isinstance(part, str) for part in parts):
        raise InvalidInputError(f"prefix is {prefix!r}; it must be a str, or a dict of prefixes in the file to ours")
    if not prefix:
        return tensors
    if isinstance(prefix, str):
        before = prefix if prefix.endswith(".") else f"{prefix}."
        inside = any(name.startswith(before) for name in tensors)
        prefix = {"": before} if inside else {before: ""}
    longest = sorted(prefix.items(), key=lambda pair: -len(pair[1]))
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        pair = next((pair for pair in longest if name.startswith(pair[1])), None)
        if pair is not None:
            renamed[pair[0] + name.removeprefix(pair[1])] = tensor
    if not renamed:
        names = ", ".join(list(tensors)[:3])
        raise InvalidInputError(f"prefix is {dict(prefix)}, but no name in the module begins so: they are {names}, ...")
    return renamed


def _fitting_prefix(data: bytes, into: nn.Module) -> str | None:
    """Returns a prefix with which a file fits a module: "" for none, of a part, or one of wrappers."""
    tensors = named_tensors(into)
    parts = [name for name, _ in into.named_children()]
    for prefix in dict.fromkeys(["", *parts, *_WRAPPERS]):
        with contextlib.suppress(InvalidInputError):
            layout = layout_of(_named_as_in_file(tensors, prefix))
            payload = unpack(data)
            ordered = decode_kinds(payload.stream, layout.entries)
            if fingerprint(ordered, layout.aliases) == payload.fingerprint:
                return prefix
    return None


# Attributes in which training frameworks and their users keep a network.
_WRAPPERS = ("net", "model", "module", "network")


def with_metadata(data: bytes, metadata: Mapping[str, str]) -> bytes:
    """Returns a file with texts in its safetensors header, in the place of those that it had.

    A checksum of them stands there, too, so that no altered byte goes unseen.

    Raises:
        InvalidInputError: a key or value is no text, or they are longer than `MAX_METADATA_BYTES`.
    """
    tensor = _tensor_of(data)
    header = _header(len(tensor), _checked(metadata))
    return len(header).to_bytes(8, "little") + header + tensor


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """Returns the texts that were saved with a file (`result.save(path, metadata=)`), nothing where there are none.

    Raises:
        InvalidInputError: no such file.
        CorruptArtifactError: a damaged file.
    """
    return _metadata_of(read_bytes(path))


def _checked(metadata: Mapping[str, str]) -> dict[str, str]:
    if not isinstance(metadata, Mapping):
        raise InvalidInputError(f"metadata is {metadata!r}; it must be a dict of texts")
    other = [key for pair in metadata.items() for key in pair if not isinstance(key, str)]
    if other or CHECKSUM in metadata:
        what = f"has {other[0]!r}" if other else f"has the key {CHECKSUM!r}, which is the file's own"
        raise InvalidInputError(f"metadata {what}; it must be a dict of texts, such as {{'source': 'model zoo'}}")
    found = {key: metadata[key] for key in sorted(metadata)}
    if len(_plain_json(found)) > MAX_METADATA_BYTES:
        raise InvalidInputError(f"the metadata take more than {MAX_METADATA_BYTES} bytes")
    return found


def _plain_json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()
