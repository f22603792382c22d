"""Two studies side by side: the cells that both have, how they differ, and which differences are beyond noise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pandas import DataFrame
from scipy import stats

from autocompress.errors import InvalidInputError
from studies.records.record import Record
from studies.report.frame import KEY, check_frame, correct_by_seed, frame_of
from studies.report.names import block_name, method_name
from studies.report.statistics import EQUIVALENT_POINTS, LEVEL, MIN_SEEDS, Difference, adjust, difference, holm
from studies.report.tables import NOTHING, interval, markdown, mean_and_deviation, points

WORDS = frozenset({"task, target", "method", "accuracy", "size"})


def compare_command(
    name_a: str, records_a: Sequence[Record], name_b: str, records_b: Sequence[Record], *, partial: bool = False
) -> str:
    """Returns a Markdown table of the cells that two studies share: differences of accuracy and size, and which count.

    Args:
        name_a, name_b: of the studies.
        records_a, records_b: their records.
        partial: failed cells are left out instead of being an error.

    Raises:
        InvalidInputError: nothing is in both, or a record is not sound.
    """
    a, b = (frame_of(records) for records in (records_a, records_b))
    for table in (a, b):
        if len(table):
            check_frame(table, partial=partial, mixed=True)
    a, b = (table[table["state"] == "finished"] for table in (a, b))
    both = a.merge(b[KEY], on=KEY)[KEY]
    if both.empty:
        raise InvalidInputError(f"{name_a} and {name_b} have no finished cell in common: no task, method, target, seed")
    pairs = [(rows.merge(a, on=KEY), rows.merge(b, on=KEY)) for _, rows in both.groupby(KEY[:3], sort=False)]
    differences = adjust([_difference(ours, theirs) for ours, theirs in pairs])
    sizes = holm([_size_p(ours, theirs) for ours, theirs in pairs])
    rows = [_row(*pair, found, p) for pair, found, p in zip(pairs, differences, sizes, strict=True)]
    left = {name_a: len(a) - len(both), name_b: len(b) - len(both)}
    left_out = [f"; {count} finished cells only in {name}" for name, count in left.items() if count]
    origins = [f"{name}: {_origins(table)}" for name, table in (("A", a), ("B", b))]
    references = both.merge(a, on=KEY)["reference"].to_numpy() != both.merge(b, on=KEY)["reference"].to_numpy()
    return "\n\n".join(
        [
            f"# A: {name_a}, B: {name_b}",
            markdown(DataFrame(rows), WORDS),
            f"Cells with the same task, method, target and seed in both{''.join(left_out)}. Accuracy on the test "
            "split, paired t test with the variance of a crossed design, seeds and test examples; sizes, paired t test "
            f"over the seeds; each corrected by Holm's method for the {len(rows)} rows. Higher, lower, larger, "
            f"smaller: B beyond noise, corrected p < {LEVEL}; equivalent: neither, and the interval lies within "
            f"{EQUIVALENT_POINTS} points; undecided: all else, and all with fewer than {MIN_SEEDS} seeds.",
            f"Revisions of the code, {'; '.join(origins)}. References differ in {int(references.sum())} of "
            f"{len(both)} cells.",
        ]
    )


def _origins(table: DataFrame) -> str:
    return ", ".join(f"{name} ({count})" for name, count in table["revision"].value_counts().items())


def _difference(a: DataFrame, b: DataFrame) -> Difference:
    """Returns the difference of B's accuracies to A's.

    Raises:
        InvalidInputError: they are of different test splits, or do not say which examples were right.
    """
    examples = sorted({*a["examples"].astype(int), *b["examples"].astype(int)})
    where = f"{a['task'][0]}, {a['target'][0]}"
    if len(examples) > 1:
        raise InvalidInputError(f"{where}: the studies have {examples} test examples")
    found = difference(correct_by_seed(b), correct_by_seed(a))
    if found is None:
        raise InvalidInputError(f"{where}: the records do not say which test examples were right")
    return found


def _size_p(a: DataFrame, b: DataFrame) -> float:
    differences = (b["file_bytes"] - a["file_bytes"]).to_numpy()
    if len(differences) < 2 or np.ptp(differences) == 0:
        return 0.0 if differences.any() else 1.0
    return float(stats.ttest_1samp(differences, 0).pvalue)


def _row(a: DataFrame, b: DataFrame, found: Difference, size_p: float) -> dict[str, str]:
    sizes = [float(table["file_bytes"].mean()) for table in (a, b)]
    size = NOTHING if size_p >= LEVEL or len(a) < MIN_SEEDS else ("larger" if sizes[1] > sizes[0] else "smaller")
    accuracies = [mean_and_deviation(t["test_accuracy"].mean(), t["test_accuracy"].std()) for t in (a, b)]
    return {
        "task, target": block_name(a["task"][0], a["target"][0]),
        "method": method_name(a["method"][0]),
        "seeds": str(len(a)),
        "accuracy of A, %": accuracies[0],
        "accuracy of B, %": accuracies[1],
        "B - A [95 % interval]": f"{points(found.mean)} {interval(found.low, found.high)}",
        "accuracy": {"better": "higher", "worse": "lower"}.get(found.verdict, found.verdict),
        "bytes of A": f"{sizes[0]:,.0f}",
        "bytes of B": f"{sizes[1]:,.0f}",
        "bytes, B - A": f"{sizes[1] - sizes[0]:+,.0f}" if round(sizes[1] - sizes[0]) else "0",
        "size": size,
    }
