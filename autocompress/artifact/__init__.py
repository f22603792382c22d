"""The file: encoding, decoding, saving, loading, and the report of its sizes."""

from __future__ import annotations

from autocompress.artifact.files import load, read_state, save_artifact
from autocompress.artifact.format import decode_state, encode_state
from autocompress.artifact.layout import Layout, layout_of, shared_names
from autocompress.artifact.report import LayerSize, SizeReport, size_report
from autocompress.selection import original_bytes

__all__ = [
    "LayerSize",
    "Layout",
    "SizeReport",
    "decode_state",
    "encode_state",
    "layout_of",
    "load",
    "original_bytes",
    "read_state",
    "save_artifact",
    "shared_names",
    "size_report",
]
