"""What the experiments share: records, one JSON object a line, and one way to make tables of them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pandas import DataFrame

from autocompress.codec.atomic_write import write_whole
from studies.report.tables import markdown, mean_and_deviation

RESULTS = Path(__file__).parents[1] / "results"
Row = dict[str, Any]


def load_records(path: Path) -> list[Row]:
    """Returns all records, in the order they were made; of no file none."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line]


def add_record(path: Path, record: Row) -> None:
    """Adds a record: the file is there with it or without it, never with a part of it."""
    lines = [*load_records(path), record]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, "".join(f"{json.dumps(line)}\n" for line in lines).encode())


def grouped(
    records: Sequence[Row], keys: Sequence[str], once: Sequence[str] = ("seed",)
) -> dict[tuple[Any, ...], list[Row]]:
    """Returns the records by the values of some keys, in their order.

    Raises:
        ValueError: two of a group have the same values of `once`.
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for record in records:
        groups.setdefault(tuple(record[key] for key in keys), []).append(record)
    for key, rows in groups.items():
        if len({tuple(row[name] for name in once) for row in rows}) != len(rows):
            raise ValueError(f"{', '.join(map(str, key))}: more than one record of a {' and '.join(once)}")
    return groups


def table(rows: Sequence[Mapping[str, str]], words: Sequence[str]) -> str:
    """Returns a Markdown table: a line for each mapping of column to text; columns of `words` stand flush left."""
    return markdown(DataFrame(rows), set(words)) if rows else ""


def accuracies(rows: Sequence[Row]) -> dict[str, str]:
    """Returns the columns of the reference's and the networks' test accuracies, and of their difference."""
    found = DataFrame(rows)
    reference, test = found["reference_accuracy"], found["test_accuracy"]
    return {
        "reference": f"{mean_and_deviation(reference.mean(), math.nan)} %",
        "test": f"{mean_and_deviation(test.mean(), test.std())} %",
        "difference": f"{100 * (test.mean() - reference.mean()):+.2f}",
    }
