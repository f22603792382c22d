"""From a state to the bytes of a file and back."""

from __future__ import annotations

from autocompress.artifact.container import Payload, pack, unpack
from autocompress.codec.layout import ELEMENTS_PER_BYTE, Layout, fingerprint, read_table, write_table
from autocompress.codec.state_coder import decode_kinds, decode_stream, encode_stream, entries_of, has_kernels
from autocompress.codec.weight_coder import Choice
from autocompress.errors import CorruptArtifactError, InvalidInputError
from autocompress.network.compressed_tensors import CompressedState

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
        choices: see `coding.state.encode_stream`; for states much like one that was written before.

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
    return decode_stream(payload.stream, ordered, chosen.aliases, kernels=payload.version > 1)


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
