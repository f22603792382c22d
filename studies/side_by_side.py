"""Two studies side by side: the cells that both have, how they differ, and which differences are beyond noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import mean

import numpy as np
from scipy import stats

from autocompress.errors import InvalidInputError
from studies.blocks import Block, MethodCells, collect
from studies.comparison import adjust
from studies.record import Record, unpack
from studies.significance import FEWEST_SEEDS, LEVEL, REPLICATES, Bootstrap, Difference
from studies.table import markdown_table, mean_and_deviation, with_interval

HEAD = (
    "task, target",
    "method",
    "seeds",
    "accuracy of A, %",
    "accuracy of B, %",
    "B - A [95 % interval]",
    "accuracy",
    "bytes of A",
    "bytes of B",
    "bytes, B - A",
    "size",
)
WORDS = frozenset({"task, target", "method", "accuracy", "size"})


def compare_command(
    name_a: str, records_a: Sequence[Record], name_b: str, records_b: Sequence[Record], *, partial: bool = False
) -> str:
    """Returns a Markdown table of the cells that two studies share: differences of accuracy and size, and which count.

    Args:
        name_a, name_b: of the studies.
        records_a, records_b: their records.
        partial: failed and duplicate cells are left out instead of being an error.

    Raises:
        InvalidInputError: nothing is in both, or a record is not sound.
    """
    a = _by_method(records_a, partial)
    b = _by_method(records_b, partial)
    shared = [(block, ours, b[key][1]) for key, (block, ours) in a.items() if key in b]
    pairs = [(block, *_common(ours, theirs)) for block, ours, theirs in shared]
    pairs = [(block, ours, theirs) for block, ours, theirs in pairs if ours]
    if not pairs:
        raise InvalidInputError(f"{name_a} and {name_b} have no finished cell in common: no task, method, target, seed")
    differences = adjust([_accuracy_difference(block, ours, theirs) for block, ours, theirs in pairs])
    sizes = _adjusted([_size_p_value(ours, theirs) for _, ours, theirs in pairs], differences)
    rows = [_row(*pair, found, size) for pair, found, size in zip(pairs, differences, sizes, strict=True)]
    shared_cells = sum(len(ours) for _, ours, _ in pairs)
    only = {name_a: _finished(records_a) - shared_cells, name_b: _finished(records_b) - shared_cells}
    left_out = [f"; {count} finished cells only in {name}" for name, count in only.items() if count]
    return "\n\n".join(
        [
            f"# A: {name_a}, B: {name_b}",
            markdown_table(HEAD, rows, WORDS),
            f"Cells with the same task, method, target and seed in both{''.join(left_out)}. Accuracy "
            f"on the test split, paired bootstrap over seeds and test examples ({REPLICATES:,} replicates); sizes, "
            f"paired t test over the seeds; each corrected by Holm's method for the {len(rows)} rows. Higher, lower, "
            f"larger, smaller: B beyond noise, corrected p < {LEVEL}; tie: no difference detected; n < {FEWEST_SEEDS}: "
            "too few seeds for a claim.",
        ]
    )


def _finished(records: Sequence[Record]) -> int:
    return len({record.key for record in records if record.state == "finished"})


def _by_method(records: Sequence[Record], partial: bool) -> dict[tuple[str, str, str], tuple[Block, MethodCells]]:
    blocks = collect(records, [record.key for record in records], partial=partial) if records else []
    return {(b.task, b.target, cells.method): (b, cells) for b in blocks for cells in b.methods}


def _common(a: MethodCells, b: MethodCells) -> tuple[list[Record], list[Record]]:
    seeds = [seed for seed in a.records if seed in b.records]
    return [a.records[seed] for seed in seeds], [b.records[seed] for seed in seeds]


def _accuracy_difference(block: Block, a: Sequence[Record], b: Sequence[Record]) -> Difference:
    examples = {record.examples for record in [*a, *b]}
    if len(examples) > 1:
        raise InvalidInputError(f"{block.task}, {block.target}: the studies have {sorted(examples)} test examples")
    right = {name: {r.seed: unpack(r.correct, r.examples) for r in records} for name, records in (("A", a), ("B", b))}
    difference = Bootstrap(right).difference("B", "A")
    assert difference is not None  # the seeds are common
    return difference


def _size_p_value(a: Sequence[Record], b: Sequence[Record]) -> float:
    differences = np.array([(y.file_bytes or 0) - (x.file_bytes or 0) for x, y in zip(a, b, strict=True)], float)
    if len(differences) < 2 or differences.std() == 0:
        return 0.0 if differences.any() else 1.0
    return float(stats.ttest_1samp(differences, 0).pvalue)


def _adjusted(p_values: Sequence[float], differences: Sequence[Difference]) -> list[float]:
    return [each.adjusted_p for each in adjust([replace(d, p=p) for d, p in zip(differences, p_values, strict=True)])]


def _row(
    block: Block, a: Sequence[Record], b: Sequence[Record], difference: Difference, size_p_value: float
) -> list[str]:
    accuracies = [[record.test_accuracy or 0.0 for record in records] for records in (a, b)]
    sizes = [mean(record.file_bytes or 0 for record in records) for records in (a, b)]
    size = "tie" if size_p_value >= LEVEL else ("larger" if sizes[1] > sizes[0] else "smaller")
    return [
        f"{block.task}, {block.target}",
        a[0].method,
        str(len(a)),
        *[mean_and_deviation(mean(x), float(np.std(x, ddof=1)) if len(x) > 1 else None) for x in accuracies],
        with_interval(difference),
        {"better": "higher", "worse": "lower"}.get(difference.verdict, difference.verdict),
        *[f"{value:,.0f}" for value in sizes],
        f"{sizes[1] - sizes[0]:+,.0f}" if round(sizes[1] - sizes[0]) else "0",
        size if len(a) >= FEWEST_SEEDS else f"n < {FEWEST_SEEDS}",
    ]
