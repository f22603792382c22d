"""Records of the form before this one, all in one file, become files of their own; nothing of them is lost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from autocompress.errors import InvalidInputError
from studies.design.cell import Cell
from studies.records.record import Record
from studies.records.store import FORMER, Store


def convert(folder: Path, cells: Sequence[Cell]) -> int:
    """Returns how many records there are now; `records.jsonl` is removed once all can be read again, each value equal.

    Of a cell that failed and was finished later, or was finished twice, the first finished record is kept, as reports
    had it. What a cell was asked for is taken from the study where this has the same digest.

    Args:
        folder: of the study.
        cells: of the study as it is.

    Raises:
        InvalidInputError: there is nothing to convert, or a line is no record.
    """
    path, store = folder / FORMER, Store(folder)
    if not path.exists():
        raise InvalidInputError(f"there is no {path}")
    asked = {cell.hash: cell.to_json() for cell in cells}
    by_cell: dict[str, dict[str, object]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            former = json.loads(line)
            record = Record.from_json(former)
        except ValueError as error:
            raise InvalidInputError(f"{path}, line {number} is no record: {error}") from error
        kept = by_cell.get(record.spec_hash)
        if kept is None or (kept["state"] == "failed" and record.state == "finished"):
            by_cell[record.spec_hash] = former
    for former in by_cell.values():
        record = Record.from_json(former)
        record = replace(record, cell=asked.get(record.spec_hash, {}))
        store.write(record)
        written = json.loads(store.path(record.key, record.spec_hash).read_text(encoding="utf-8"))
        changed = [name for name, value in former.items() if name != "schema" and written[name] != value]
        if changed:
            raise InvalidInputError(f"{path}: {', '.join(changed)} of {record.key} could not be kept as they are")
    path.unlink()
    return len(by_cell)
