"""Writes `docs/networks.md`: every architecture, compressed for a few steps, saved and loaded elsewhere.

PYTHONPATH=tests python -m architectures.table FOLDER [PROCESSES]

What is done of it is kept in the folder, and a later call goes on from there.
"""

from __future__ import annotations

import logging
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import torch

from architectures import ALL, loaded_elsewhere
from autocompress.codec.atomic_write import write_whole
from autocompress.network.selection import original_bytes

PAGE = Path(__file__).parent.parent.parent / "docs" / "networks.md"
HEAD = """# Networks that are tried

Each network of this table is small and untrained. It is compressed for four steps to a part of its size, saved, and
loaded by another process into a network of other weights, whose outputs must be the same to the last bit.
`PYTHONPATH=tests python -m architectures.table FOLDER` writes this page, `pytest -m "" tests/test_architectures.py`
tries all.

What is refused, by name and before any training: tensors on the meta device, shards (FSDP, DTensor), lazy parameters
without a shape, float16 parameters, parameters that share a part of their memory, and modules that hold what cannot be
copied. Layers with weight norm or spectral norm take a file size or a quality constraint as their target, nothing else.

| network | kind | what is unusual | weights | original bytes | target | file bytes |
|---|---|---|---:|---:|---:|---:|
"""


def names_of(page: str) -> list[str]:
    """Returns the networks in the table of a page."""
    rows = [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("|")]
    return rows[2:]


def tried(name: str, folder: Path) -> None:
    """Compresses a network, where its row is not in the folder yet: file, outputs and row."""
    number, architecture = list(ALL).index(name), ALL[name]
    if (row := folder / f"{number}.md").exists():
        return
    logging.disable()
    torch.set_num_threads(1)
    network, result = architecture.network(), architecture.compressed()
    result.save(folder / f"{number}.safetensors")
    torch.save(architecture.outputs(result.model), folder / f"{number}.before")
    weights = sum(parameter.numel() for parameter in network.parameters())
    sizes = f"{original_bytes(network):,} | {architecture.target} | {result.file_bytes:,}"
    text = f"| {name} | {architecture.family} | {architecture.about} | {weights:,} | {sizes} |\n"
    print(text, end="", file=sys.stderr, flush=True)
    write_whole(row, text.encode())


def write(folder: Path, processes: int = 1) -> None:
    """Tries all and writes the page.

    Raises:
        AssertionError: an output differs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(processes) as pool:
        list(pool.map(partial(tried, folder=folder), ALL))
    files = {name: folder / f"{number}.safetensors" for number, name in enumerate(ALL)}
    for name, others in loaded_elsewhere(files):
        mine = torch.load(files[name].with_suffix(".before"))
        assert len(others) == len(mine), name
        assert all(torch.equal(a, b) for a, b in zip(mine, others, strict=True)), name
    rows = [(folder / f"{number}.md").read_text(encoding="utf-8") for number in range(len(ALL))]
    write_whole(PAGE, (HEAD + "".join(rows)).encode())


if __name__ == "__main__":
    write(Path(sys.argv[1]), *map(int, sys.argv[2:]))
