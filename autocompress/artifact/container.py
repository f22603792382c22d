"""The outside of the file: a safetensors container with one uint8 tensor, and a checksum.

Layout of the tensor: 1 byte (format version * 2 + whether a name table follows), 4 bytes CRC-32 of all the rest of
the tensor and that byte, 4 bytes fingerprint of names and shapes, the name table if any (its length as a varint), the
stream. The container is accepted only in the one spelling that is written here, so that no altered byte goes unseen.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from autocompress.errors import CorruptArtifactError

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
