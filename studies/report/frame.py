"""The records of a study as one table of pandas, from which everything else is made: a row for each cell.

Its columns are the fields of `studies.records.record.Record`, and what follows from them; `docs/records.md` has a line
for each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from pandas import DataFrame, Series

from autocompress.errors import InvalidInputError
from autocompress.targets import CodeBits, FileSize, WeightBits, combined
from studies.records.record import COMPRESSOR, Key, Record, unpack

KEY = ["task", "target", "method", "seed"]
BLOCK = ["task", "target"]
# Columns that hold a list, a mapping or an array in each row; not of CSV.
NESTED = (
    *("versions", "layers", "parts", "curve", "anytime", "history", "trials", "resources", "cell", "constants"),
    *("hardware", "scores", "plan", "search", "former", "correct", "reference_correct", "error"),
)
# What a cell was asked, by the name of its column.
ASKED = {"engine": "method", "final_epochs": "final_epochs", "trials_asked": "trials"} | {
    name: name for name in ("trial_epochs", "space", "pruner", "workers", "budget", "fold", "alpha")
}
RESOURCES = ("energy", "macs", "latency")
# So many cells are named in a message; of more the number is said.
NAMED_CELLS = 12


def frame_of(records: Sequence[Record], expected: Sequence[Key] | None = None) -> DataFrame:
    """Returns a row for each cell that was asked for, in that order, or for each record; see `docs/records.md`.

    The column `state` is "finished", "failed" or "missing"; where there is no finished record numbers are NaN.

    Raises:
        InvalidInputError: a record is not sound, or two are of one cell.
    """
    rows = [_row(record) for record in records]
    keys = [record.key for record in records]
    doubled = sorted({cell_name(key) for key in keys if keys.count(key) > 1}) if len(set(keys)) < len(keys) else []
    if doubled:
        raise InvalidInputError(f"cells there more than once: {_some(doubled)}")
    asked = keys if expected is None else list(dict.fromkeys(expected))
    by_key = dict(zip(keys, rows, strict=True))
    names = list(rows[0]) if rows else list(_columns())
    blank = {name: None for name in names}
    table = DataFrame(
        [by_key.get(key) or blank | dict(zip(("task", "method", "target", "seed"), key, strict=True)) for key in asked],
        columns=names,
    )
    table["state"] = table["state"].fillna("missing").astype(str)
    numbers = [name for name in names if name not in (*NESTED, *_columns_of_words())]
    return table.astype({name: float for name in numbers if name not in ("seed", "fold")})


def check_frame(table: DataFrame, unasked: Sequence[Key] = (), *, partial: bool = False, mixed: bool = False) -> None:
    """Returns if a report may be made.

    Raises:
        InvalidInputError: nothing is finished; unless `partial`, cells are missing, failed or not asked for; unless
            `mixed`, cells of one seed started from different references, or are of different revisions; the cells of a
            block are of different test splits. All are listed.
    """
    if table.empty:
        raise InvalidInputError("the study asks for no cell: there is nothing to report")
    finished = table[table["state"] == "finished"]
    if not partial:
        cells = {state: _names(table[table["state"] == state]) for state in ("missing", "failed")}
        cells["not asked for"] = [cell_name(key) for key in unasked]
        found = [f"{len(names)} {what}: {_some(names)}" for what, names in cells.items() if names]
        if found:
            raise InvalidInputError(f"cells {'; '.join(found)}. --partial makes a report that marks them")
    if finished.empty:
        raise InvalidInputError("no cell is finished: there is nothing to report")
    for (task, target), block in finished.groupby(BLOCK, sort=False):
        counts = sorted(block["examples"].astype(int).unique())
        if len(counts) > 1:
            raise InvalidInputError(
                f"{task}, {target}: the records are of {' and '.join(map(str, counts))} test examples; methods can "
                "only be compared on the same ones"
            )
    if not mixed and (mixture := mixtures(table)):
        raise InvalidInputError(f"{'; '.join(mixture)}. --mixed makes a report that says so")


def mixtures(table: DataFrame) -> list[str]:
    """Returns what cells that are compared with each other do not have in common: revisions, references."""
    finished = table[table["state"] == "finished"]
    found = []
    revisions = finished["revision"].value_counts()
    if len(revisions) > 1:
        counts = ", ".join(f"{name} ({count})" for name, count in revisions.items())
        found.append(f"the cells are of {len(revisions)} revisions of the code: {counts}")
    kinds = finished.groupby(["task", "seed", "fold", "alpha"], sort=False)["reference"].nunique()
    different = kinds[kinds > 1]
    if len(different):
        names = [f"{task}, seed {seed}" for task, seed, *_ in different.index]
        found.append(f"cells of one seed started from different references: {_some(names)}")
    return found


def cell_name(key: Key) -> str:
    """Returns a cell's name for a message."""
    task, method, target, seed = key
    return f"{task}/{method}/{target}/seed {seed}"


def methods_of(table: DataFrame) -> list[str]:
    """Returns the methods in their order, the compressor first."""
    return sorted(table["method"].unique(), key=lambda name: name != COMPRESSOR)


def flat(table: DataFrame) -> DataFrame:
    """Returns the columns that hold one number or word a row: what a spreadsheet can take."""
    return table.drop(columns=[name for name in NESTED if name in table])


def _row(record: Record) -> dict[str, Any]:
    """Returns a record as a row.

    Raises:
        InvalidInputError: no row may be made from it; its cell is named.
    """
    try:
        Record.from_json(record.to_json())
        if record.state == "finished":
            _check_finished(record)
    except InvalidInputError as error:
        raise InvalidInputError(f"cell {cell_name(record.key)}: {error}") from error
    cell: Mapping[str, Any] = record.cell
    finished = record.state == "finished"
    # Records of earlier schemas have no digest of their reference; which examples it has right tells most apart.
    fallback = f"{record.reference_correct} {record.reference_accuracy}"
    derived = {
        "engine": COMPRESSOR if record.method == COMPRESSOR else "",
        "fold": 1,
        "alpha": 0.0,
        **{name: cell[key] for name, key in ASKED.items() if key in cell},
        "reference": record.reference_hash or fallback,
        "used": _used(record) if finished else None,
        "weight_data_factor": _dense_bytes(record) / record.weight_data_bytes if record.weight_data_bytes else None,
        "total_steps": record.gradient_steps + record.search_gradient_steps,
        "search_multiple": record.search_gradient_steps / record.gradient_steps if record.gradient_steps else None,
        "trials_run": sum(record.trials.values()),
        **{name: record.resources.get(name) for name in RESOURCES},
        "cpu": record.hardware.get("cpu", ""),
        "gpu": record.hardware.get("gpu", ""),
        "cores": record.hardware.get("cores"),
    }
    own = {name: getattr(record, name) for name in Record.__dataclass_fields__}
    if finished and record.correct:
        for name in ("correct", "reference_correct"):
            own[name] = unpack(own[name], record.examples)
    if not finished:
        own |= {name: None for name, value in own.items() if value in ("", 0, 0.0)} | {"seed": record.seed}
        derived |= {"total_steps": None, "trials_run": None}
    return _columns() | own | derived


def _columns() -> dict[str, Any]:
    """Returns all columns with nothing in them, in their order."""
    more = ("reference", "used", "weight_data_factor", "total_steps", "search_multiple", "trials_run", *RESOURCES)
    return dict.fromkeys((*Record.__dataclass_fields__, *ASKED, *more, "cpu", "gpu", "cores"))


def _columns_of_words() -> set[str]:
    words = {
        name for name, each in Record.__dataclass_fields__.items() if str(each.type).startswith(("str", "Literal"))
    }
    return words | {"engine", "space", "pruner", "reference", "cpu", "gpu"}


def _used(record: Record) -> float | None:
    """Returns what the network takes as a part of what the target allows, where that is a number of bytes or bits."""
    parts = []
    for each in combined(record.target).each:
        if isinstance(each, FileSize):
            allowed = each.size_bytes or float(each.fraction or 0) * (record.original_bytes or 0)
            parts.append((record.file_bytes or 0) / allowed if allowed else math.nan)
        elif isinstance(each, WeightBits | CodeBits):
            counted = record.weight_data_bytes if isinstance(each, WeightBits) else record.code_bytes
            bits = each.bits or 8 * _dense_bytes(record) / float(each.factor or 1)
            parts.append(8 * counted / bits if counted else math.nan)
    return max(parts, default=None)


def _dense_bytes(record: Record) -> float:
    return float(sum(4 * math.prod(layer["shape"]) for layer in record.layers))


def _check_finished(record: Record) -> None:
    """Raises InvalidInputError where a finished record lacks what every table needs, or its lists hold no numbers."""
    needed = ("reference_accuracy",) if record.former else ("reference_accuracy", "weight_data_bytes", "layers")
    lacking = [name for name in needed if getattr(record, name) in (None, [])]
    if lacking:
        raise InvalidInputError(f"it is finished, but has no {', '.join(lacking)}")
    numbers = [(f"layers: {key}", layer.get(key)) for layer in record.layers for key in ("kept", "bits", "bytes")]
    numbers += [("layers: shape", side) for layer in record.layers for side in layer.get("shape") or [None]]
    numbers += [(f"parts: {part}", size) for part, size in record.parts.items()]
    numbers += [("anytime", value) for point in record.anytime for value in (point if len(point) == 2 else [point])]
    for name, value in numbers:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise InvalidInputError(f"the record's {name} is {value!r}, not a number")
    if record.correct:
        right = float(np.mean(unpack(record.correct, record.examples)))
        if abs(right - (record.test_accuracy or 0.0)) > 1e-6:
            raise InvalidInputError(
                f"the test accuracy is {record.test_accuracy}, but {right:.6f} of the examples are marked right"
            )


def _names(rows: DataFrame) -> list[str]:
    return [cell_name((row.task, row.method, row.target, row.seed)) for row in rows.itertuples()]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED_CELLS} more" if len(names) > NAMED_CELLS else ""
    return ", ".join(names[:NAMED_CELLS]) + more


def correct_by_seed(rows: DataFrame) -> Series:
    """Returns which test examples were right, an array for each seed; rows without are left out."""
    known = rows[(rows["state"] == "finished") & rows["correct"].map(lambda each: isinstance(each, np.ndarray))]
    return pd.Series(list(known["correct"]), index=list(known["seed"]), dtype=object)
