"""The tables of a study as CSV: the same rows, every number on its own."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence

from studies.rows import Row, Table

NUMBERS = (
    "file_bytes_mean",
    "file_bytes_min",
    "file_bytes_max",
    "test_accuracy_mean",
    "test_accuracy_sd",
    "validation_accuracy_mean",
    "reference_accuracy_mean",
    "difference_to_reference",
    "difference_to_compressor",
    "interval_low",
    "interval_high",
    "p",
    "p_holm",
    "weight_data_factor",
    "gradient_steps",
    "search_multiple",
    "device_seconds",
)


def to_csv(tables: Sequence[Table]) -> str:
    """Returns one line per task, target and method: numbers as they are, accuracies as fractions of 1."""
    text = io.StringIO()
    lines = [_csv_cells(table, row) for table in tables for row in table.rows]
    writer = csv.DictWriter(text, fieldnames=list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _csv_cells(table: Table, row: Row) -> dict[str, str | int | float]:
    summary, difference, cells = row.summary, row.difference, row.cells
    numbers: dict[str, float] = {}
    if table.reference:
        numbers["reference_accuracy_mean"] = table.reference[0]
    if summary:
        numbers |= {
            "file_bytes_mean": summary.file_bytes[0],
            "file_bytes_min": summary.file_bytes[1],
            "file_bytes_max": summary.file_bytes[2],
            "test_accuracy_mean": summary.accuracy,
            "validation_accuracy_mean": summary.validation,
            "difference_to_reference": summary.to_reference,
            "weight_data_factor": summary.weight_data_factor,
            "gradient_steps": summary.gradient_steps,
            "search_multiple": summary.search_multiple,
            "device_seconds": summary.device_seconds,
        }
        if summary.accuracy_sd is not None:
            numbers["test_accuracy_sd"] = summary.accuracy_sd
    if difference:
        numbers |= {
            "difference_to_compressor": difference.mean,
            "interval_low": difference.low,
            "interval_high": difference.high,
            "p": difference.p,
            "p_holm": difference.adjusted_p,
        }
    return {
        "task": table.block.task,
        "target": table.block.target,
        "method": cells.method,
        "seeds": len(cells.records),
        "seeds_expected": len(cells.expected),
        "failed": len(cells.failed),
        "missing": len(cells.missing),
        "doubled": len(cells.doubled),
        **{key: _short(numbers[key]) if key in numbers else "" for key in NUMBERS},
        "verdict": difference.verdict if difference else "",
        "best": "yes" if row.best else "no",
    }


def _short(value: float) -> str:
    """Returns six digits after the point, or of a whole number none: the same on every machine."""
    return f"{value:.0f}" if math.isclose(value, round(value), abs_tol=1e-9) else f"{value:.6f}"
