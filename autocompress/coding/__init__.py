"""The entropy coder: a whole `CompressedState` in one range-coded stream, and the length of each of its parts."""

from __future__ import annotations

from autocompress.coding.state import Entry, code_length, decode_stream, encode_stream
from autocompress.coding.weights import Choice

__all__ = ["Choice", "Entry", "code_length", "decode_stream", "encode_stream"]
