"""How far a study has come: a table of its cells by method, and what went wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from studies.design.cell import Cell
from studies.records.record import Record
from studies.records.store import Store, claimed
from studies.running.progress import last_line

STATES = ("finished", "failed", "running", "missing")


def status(cells: Sequence[Cell], folder: Path) -> str:
    """Returns the table as text: a row for each method, then the last line of each failure.

    Not for a process that runs the study itself, see `CellLocks`.
    """
    records = Store(folder).read()
    states = states_of(cells, records, {cell.hash for cell in claimed(folder, cells)})
    methods = list(dict.fromkeys(cell.name for cell in cells))
    rows: list[tuple[str, ...]] = [("method", *STATES)]
    for method in methods:
        mine = [states[cell.hash] for cell in cells if cell.name == method]
        rows.append((method, *(str(mine.count(state)) for state in STATES)))
    every = list(states.values())
    rows.append(("all", *(str(every.count(state)) for state in STATES)))
    width = max(len(row[0]) for row in rows)
    lines = [row[0].ljust(width) + "".join(text.rjust(10) for text in row[1:]) for row in rows]
    return "\n".join([*lines, *_failures(cells, states, records), *_others(cells, records)])


def states_of(cells: Sequence[Cell], records: Sequence[Record], running: set[str]) -> dict[str, str]:
    """Returns the state of each cell by its digest: a failure counts until it is made good or tried again."""
    finished = {record.spec_hash for record in records if record.state == "finished"}
    tried = {record.spec_hash for record in records}
    states = {}
    for cell in cells:
        known = "failed" if cell.hash in tried else "missing"
        states[cell.hash] = "finished" if cell.hash in finished else "running" if cell.hash in running else known
    return states


def _failures(cells: Sequence[Cell], states: dict[str, str], records: Sequence[Record]) -> list[str]:
    last = {record.spec_hash: last_line(record.error) for record in records if record.state == "failed"}
    failed = [cell for cell in cells if states[cell.hash] == "failed"]
    return ["", "failed:", *(f"  {cell}: {last[cell.hash]}" for cell in failed)] if failed else []


def _others(cells: Sequence[Cell], records: Sequence[Record]) -> list[str]:
    known = {cell.hash for cell in cells}
    others = sum(record.spec_hash not in known for record in records)
    return ["", f"{others} records are of cells that this study does not ask for (now), and do not count"] * (
        others > 0
    )
