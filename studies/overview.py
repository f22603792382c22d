"""All methods and targets of a task in one table: what each network holds, and what it takes to run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import mean, stdev

from studies.blocks import Block, MethodCells
from studies.record import Record
from studies.rows import Row, Table
from studies.table import NOTHING, TextCell, TextTable, mean_and_deviation, points

HEAD = (
    "method",
    "asked for",
    "seeds",
    "test accuracy, %",
    "to reference",
    "file bytes",
    "entropy bytes",
    "weight data bytes",
    "energy, %",
    "MACs, %",
    "latency, %",
    "steps",
)
WORDS = frozenset({"method", "asked for"})
NOTES = (
    "File: as it lies on disk. Entropy: ideal code length of what it holds. Weight data: bits times nonzeros, the "
    "literature's count. Energy, MACs, latency: of the network without the channels that no weight reads, for one "
    "input, as a part of the uncompressed network's; energy by the analytic accelerator model, which skips zeros; MACs "
    "with zeros counted; latency the median of 50 passes of 64 inputs on the CPU, in turns with the uncompressed "
    "network. Steps: gradient steps, those of a search included. Mean ± standard deviation over the seeds."
)


def measured(blocks: Sequence[Block]) -> bool:
    """Tells whether any record says what its network takes to run."""
    return any(record.resources for block in blocks for record in block.records)


def overview_table(tables: Sequence[Table]) -> TextTable:
    """Returns one table of several targets of one task."""
    rows = [_text_cells(table.block, row) for table in tables for row in table.rows]
    return TextTable(f"{tables[0].block.task}, all systems", NOTES, HEAD, WORDS, tuple(rows), "")


def _text_cells(block: Block, row: Row) -> tuple[TextCell, ...]:
    cells = row.cells
    known = [TextCell(cells.method, cells.method), TextCell(block.target, block.target)]
    known.append(TextCell(row.seeds, len(cells.records)))
    if row.summary is None:
        return (*known, *[TextCell(NOTHING, None)] * (len(HEAD) - len(known)))
    accuracy, to_reference = row.summary.accuracy, row.summary.to_reference
    known.append(TextCell(mean_and_deviation(accuracy, row.summary.accuracy_sd), accuracy))
    known.append(TextCell(points(to_reference), to_reference))
    known += [
        _number(cells, lambda record: record.file_bytes),
        _number(cells, lambda record: record.entropy_bytes),
        _number(cells, lambda record: record.weight_data_bytes),
        *[_percent(cells, name) for name in ("energy", "macs", "latency")],
        _number(cells, lambda record: record.gradient_steps + record.search_gradient_steps),
    ]
    return tuple(known)


def _number(cells: MethodCells, value: Callable[[Record], float | None]) -> TextCell:
    found = mean(value(record) or 0.0 for record in cells.records.values())
    return TextCell(f"{found:,.0f}", found)


def _percent(cells: MethodCells, name: str) -> TextCell:
    found = [100 * record.resources[name] for record in cells.records.values() if name in record.resources]
    if not found:
        return TextCell(NOTHING, None)
    spread = f" ± {stdev(found):.0f}" if len(found) > 1 and stdev(found) >= 0.5 else ""
    return TextCell(f"{mean(found):.0f}{spread}", mean(found))
