"""Which tensors a network has: names, shapes and shared storage, from a module, a state or the file's own table."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from autocompress.codec.state_coder import Entry, entries_of
from autocompress.errors import CorruptArtifactError
from autocompress.network.compressed_tensors import CompressedState
from autocompress.network.live_network import named_tensors, storage_key

# Without a model to compare with, a file may ask for at most this many elements, and a table for this many bytes.
MAX_ELEMENTS = 1 << 28
# ... and for so many for each of its own bytes: a hundred bytes shall not take half a gigabyte of memory.
ELEMENTS_PER_BYTE = 1 << 16
MAX_TABLE_TEXT_BYTES = 1 << 24
MAX_DIMENSIONS = 16


@dataclass(frozen=True)
class Layout:
    """Names and shapes of a state_dict, each storage once.

    Attributes:
        entries: in the order of the state_dict.
        aliases: name of a shared tensor -> name of the entry that holds it.
    """

    entries: Sequence[Entry]
    aliases: dict[str, str] = field(default_factory=dict)

    @property
    def elements(self) -> int:
        return sum(entry.elements for entry in self.entries)


def shared_names(network: nn.Module | Mapping[str, Tensor]) -> dict[str, str]:
    """Returns alias -> first name of the same tensor (tied weights), of a module or of tensors by name."""
    first: dict[tuple[object, ...], str] = {}
    aliases = {}
    for name, tensor in (named_tensors(network) if isinstance(network, nn.Module) else network).items():
        holder = first.setdefault(storage_key(tensor), name)
        if holder != name:
            aliases[name] = holder
    return aliases


def layout_of(network: nn.Module | Mapping[str, Tensor]) -> Layout:
    """Returns the layout of a module, or of tensors by name."""
    tensors = named_tensors(network) if isinstance(network, nn.Module) else network
    aliases = shared_names(tensors)
    return Layout([Entry(name, tuple(t.shape)) for name, t in tensors.items() if name not in aliases], aliases)


def fingerprint(entries: Sequence[Entry], aliases: dict[str, str]) -> bytes:
    """Returns 4 bytes that tell entries (in the order of the stream) and aliases from others."""
    return zlib.crc32(_text(entries, aliases)).to_bytes(4, "little")


def write_table(state: CompressedState) -> bytes:
    """Returns the deflated name table of a state."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    return compressor.compress(_text(entries_of(state), state.aliases)) + compressor.flush()


def read_table(table: bytes) -> Layout:
    """Returns the layout in a name table.

    Raises:
        CorruptArtifactError: no table, or sizes beyond the limits of this module.
    """
    try:
        inflater = zlib.decompressobj(-15)
        text = inflater.decompress(table, MAX_TABLE_TEXT_BYTES)
        if not inflater.eof or inflater.unused_data:
            raise ValueError("it does not end where it should")
        shapes, aliases = json.loads(text)
        entries = [Entry(name, _shape(shape)) for name, shape in shapes.items()]
        known = {entry.name for entry in entries}
        if not all(target in known and alias not in known for alias, target in aliases.items()):
            raise ValueError("a shared tensor without its holder")
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError, zlib.error) as error:
        raise CorruptArtifactError(f"the name table is damaged: {error}") from error
    layout = Layout(entries, aliases)
    if layout.elements > MAX_ELEMENTS:
        raise CorruptArtifactError(
            f"the file announces {layout.elements} elements; without a model at most {MAX_ELEMENTS} are read"
        )
    return layout


def _shape(sizes: object) -> tuple[int, ...]:
    if not isinstance(sizes, list) or len(sizes) > MAX_DIMENSIONS:
        raise ValueError(f"{sizes!r} is no shape")
    if not all(type(size) is int and 0 <= size <= MAX_ELEMENTS for size in sizes):
        raise ValueError(f"{sizes!r} is no shape of at most {MAX_ELEMENTS} elements")
    if math.prod(size or 1 for size in sizes) > MAX_ELEMENTS:
        raise ValueError(f"{sizes!r} has more than {MAX_ELEMENTS} elements")
    return tuple(sizes)


def _text(entries: Sequence[Entry], aliases: dict[str, str]) -> bytes:
    shapes = {entry.name: list(entry.shape) for entry in entries}
    return json.dumps([shapes, dict(sorted(aliases.items()))], separators=(",", ":")).encode()
