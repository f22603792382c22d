"""Writes `docs/networks.md`: every architecture, compressed for a few steps, saved and loaded elsewhere.

PYTHONPATH=tests python -m architectures.table
"""

from __future__ import annotations

import logging
import sys
import tempfile
from pathlib import Path

import torch

from architectures import ALL, loaded_elsewhere
from autocompress.codec.atomic_write import write_whole
from autocompress.network.selection import original_bytes

PAGE = Path(__file__).parent.parent.parent / "docs" / "networks.md"
HEAD = """# Networks that are tried

Each network of this table is small and untrained. It is compressed for four steps to a part of its size, saved, and
loaded by another process into a network of other weights, whose outputs must be the same to the last bit.
`PYTHONPATH=tests python -m architectures.table` writes this page, `pytest -m "" tests/test_architectures.py` tries all.

What is refused, by name and before any training: tensors on the meta device, shards (FSDP, DTensor), lazy parameters
without a shape, float16 parameters, parameters that share a part of their memory, and modules that hold what cannot be
copied. Layers with weight norm or spectral norm take a file size or a promise as their target, nothing else.

| network | kind | what is unusual | weights | original bytes | target | file bytes |
|---|---|---|---:|---:|---:|---:|
"""


def names_of(page: str) -> list[str]:
    """Returns the networks in the table of a page."""
    rows = [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("|")]
    return rows[2:]


def write() -> None:
    """Tries all and writes the page.

    Raises:
        AssertionError: an output differs.
    """
    rows, outputs = [], {}
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for number, (name, architecture) in enumerate(ALL.items()):
            network, result = architecture.network(), architecture.compressed()
            files[name] = Path(folder) / f"{number}.safetensors"
            result.save(files[name])
            outputs[name] = architecture.outputs(result.model)
            weights = sum(parameter.numel() for parameter in network.parameters())
            sizes = f"{original_bytes(network):,} | {architecture.target} | {result.file_bytes:,}"
            rows.append(f"| {name} | {architecture.family} | {architecture.about} | {weights:,} | {sizes} |")
            print(rows[-1], file=sys.stderr, flush=True)
        for name, others in loaded_elsewhere(files):
            assert len(others) == len(outputs[name]), name
            assert all(torch.equal(a, b) for a, b in zip(outputs[name], others, strict=True)), name
    write_whole(PAGE, (HEAD + "\n".join(rows) + "\n").encode())


if __name__ == "__main__":
    logging.disable()
    torch.set_num_threads(1)
    write()
