"""How fast a network is projected, coded and loaded: processor seconds beside those of a sort, or of `torch.load`.

    python -m studies.experiments.speed run resnet50 20
    python -m studies.experiments.speed run gpt2 20
    python -m studies.experiments.speed table

The weights are random in the shapes of a network; rows and columns differ in scale, and tails are heavier than normal,
as in trained layers. They are projected to a size, from nothing and from the tables of the last projection after they
have moved by a hundredth of their deviation, and the last projection is written and read. All in one process and one
thread, in turn, medians of some rounds. A record is one line of `studies/results/speed.jsonl`.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from autocompress.codec.file import decode_state, encode_state, load, save_artifact
from autocompress.codec.layout import layout_of
from autocompress.constraints.rate_distortion.projection import project_to_bits
from autocompress.network.compressed_tensors import CompressedState
from studies.experiments import store
from studies.experiments.store import Row, add_record, load_records
from studies.records.machine import hardware, revision, versions

RECORDS = store.RESULTS / "speed.jsonl"
ROUNDS = 3
# (vocabulary, positions, width, blocks)
_GPT2 = (50257, 1024, 768, 12)
T = TypeVar("T")


def shapes_of(network: str) -> list[tuple[int, ...]]:
    """Returns the shapes of the weights of `gpt2` or of a network of torchvision."""
    if network != "gpt2":
        import torchvision

        with torch.device("meta"):
            return [tuple(p.shape) for p in getattr(torchvision.models, network)().parameters() if p.dim() > 1]
    words, positions, width, blocks = _GPT2
    block = [(3 * width, width), (width, width), (4 * width, width), (width, 4 * width)]
    return [(words, width), (positions, width), *blocks * block]


def random_weights(shapes: Sequence[tuple[int, ...]]) -> Iterator[Tensor]:
    """Yields weights as described above, always the same."""
    generator = torch.Generator().manual_seed(0)

    def scales(*shape: int) -> Tensor:
        return torch.exp(0.5 * torch.randn(shape, generator=generator))

    for shape in shapes:
        rest = [1] * (len(shape) - 2)
        spread = scales(*shape) * scales(shape[0], 1, *rest) * scales(1, shape[1], *rest)
        yield torch.randn(shape, generator=generator) * spread * (2 / np.prod(shape[1:])) ** 0.5


class _Clock:
    """Processor seconds by name, of every time that something was done."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    def timed(self, name: str, call: Callable[..., T], *arguments: Any, **named: Any) -> T:
        started = time.process_time()
        found = call(*arguments, **named)
        self.seconds.setdefault(name, []).append(time.process_time() - started)
        return found


def _peak_bytes(call: Callable[[], T]) -> tuple[T, int | None]:
    """Returns what a call returns, and by how much memory grew during it at most; None where Linux does not say."""
    status = Path("/proc/self/status")

    def field(name: str) -> int:
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(name)) * 1024

    try:
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
        before = field("VmRSS")
        found = call()
        return found, field("VmHWM") - before
    except OSError:
        return call(), None


def measured(network: str, ratio: float, rounds: int) -> Row:
    """Returns the record of a network at a size of 1/ratio of its float32 weights."""
    weights = list(random_weights(shapes_of(network)))
    count = sum(w.numel() for w in weights)
    budget = 32 * count / ratio
    generator = torch.Generator().manual_seed(1)
    warm_up = [w[:64] for w in weights]
    project_to_bits(warm_up, 32 * sum(w.numel() for w in warm_up) / ratio)  # what is loaded once is no part of it
    found, peak = _peak_bytes(lambda: project_to_bits(weights, budget))
    clock = _Clock()
    moved = [w + 0.01 * w.std() * torch.randn(w.shape, generator=generator) for w in weights]
    flat = torch.cat([w.flatten() for w in weights])
    names = [f"w{i}" for i in range(len(weights))]
    module = nn.Module()
    for name, w in zip(names, weights, strict=True):
        module.register_parameter(name, nn.Parameter(w))
    dense = io.BytesIO()
    torch.save(module.state_dict(), dense)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.safetensors"
        for _ in range(rounds):
            clock.timed("sort", np.sort, flat.numpy())
            clock.timed("torch.sort", torch.sort, flat)
            start = clock.timed("cold", project_to_bits, weights, budget).state
            last = clock.timed("warm", project_to_bits, moved, budget, start)
            state = CompressedState(dict(zip(names, last.quantized, strict=True)))
            data = clock.timed("encode", encode_state, state, names=False)
            clock.timed("decode", decode_state, data, layout_of(module))
            save_artifact(path, data)
            clock.timed("load", load, path, into=module)
            dense.seek(0)
            clock.timed("torch.load", lambda: module.load_state_dict(torch.load(dense)))
    seconds = {name: median(each) for name, each in clock.seconds.items()}
    return {
        "network": network,
        "ratio": ratio,
        "weights": count,
        "rounds": rounds,
        "seconds": {name: round(each, 4) for name, each in seconds.items()},
        "kept": sum(q.nonzeros for q in last.quantized) / count,
        "bytes": len(data),
        "peak_bytes_per_weight": None if peak is None else round(peak / count, 1),
        "error": found.error / float(flat.square().sum(dtype=torch.float64)),
        "revision": revision(),
        "hardware": hardware(),
        "versions": versions(),
    }


def table(records: Sequence[Row]) -> str:
    """Returns the Markdown table, one row per record."""
    return store.table([_row(record) for record in records], ("network",))


def _row(record: Row) -> dict[str, str]:
    seconds, millions = record["seconds"], record["weights"] / 1e6

    def over(name: str, other: str) -> str:
        return f"{seconds[name] / seconds[other]:.1f}"

    peak: Any = record["peak_bytes_per_weight"]
    size = f"{millions:.1f} million weights, {record['ratio']:g}x, {record['kept']:.0%} kept"
    return {
        "network": f"{record['network']}, {size}",
        "projection, cold / sort": over("cold", "sort"),
        "warm / sort": over("warm", "sort"),
        "its memory, bytes a weight": "-" if peak is None else f"{peak:.1f}",
        "encoded, million weights a second": f"{millions / seconds['encode']:.1f}",
        "decoded": f"{millions / seconds['decode']:.1f}",
        "load / torch.load": over("load", "torch.load"),
    }


def main() -> None:
    """Measures a network or prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    runner = actions.add_parser("run")
    runner.add_argument("network", help="gpt2, or a name of torchvision.models")
    runner.add_argument("ratio", type=float)
    runner.add_argument("--rounds", type=int, default=ROUNDS)
    for action in (runner, actions.add_parser("table")):
        action.add_argument("--records", type=Path, default=RECORDS)
    options = parser.parse_args()
    if options.action == "run":
        torch.set_num_threads(1)
        record = measured(options.network, options.ratio, options.rounds)
        add_record(options.records, record)
        print(json.dumps(record), flush=True)
    print(table(load_records(options.records)))


if __name__ == "__main__":
    main()
