"""One HTML page of a study, which needs nothing else: tables that sort, figures, and where the records come from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from studies.blocks import MethodCells
from studies.plots import Drawing
from studies.record import Record
from studies.rows import Table
from studies.table import TextTable

TEMPLATE = Path(__file__).with_name("page_template.html")
CELL_HEAD = ("task", "target", "method", "seed", "state", "started", "seconds", "memory, MB", "revision", "device",
             "specification")  # fmt: skip
CELL_WORDS = frozenset({"task", "target", "method", "state", "started", "revision", "device", "specification"})

Cell = dict[str, Any]


def to_html(
    name: str,
    tables: Sequence[TextTable],
    notes: Sequence[str],
    claims: Sequence[str],
    figures: Sequence[Drawing],
    facts: Sequence[tuple[str, str]],
    records: Sequence[Record],
    description: str = "",
) -> str:
    """Returns the page.

    Args:
        name: of the study.
        tables, notes: as in Markdown.
        claims: lines of `studies.claims`.
        figures: drawn in the order given.
        facts: of `provenance`.
        records: all, failed ones included: their provenance is shown.
        description: plain text; lines are kept.
    """
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        name=name,
        description=description,
        claims=claims,
        tables=[
            {
                "title": table.title,
                "lead": table.lead,
                "head": _head(table.head, table.words),
                "rows": _table_rows(table),
            }
            for table in tables
        ],
        notes=notes,
        figures=[{"title": d.title, "caption": d.caption, "svg": Markup(d.svg)} for d in figures],
        facts=facts,
        cell_head=_head(CELL_HEAD, CELL_WORDS),
        cells=[_cell_row(record) for record in sorted(records, key=lambda r: (r.key, r.started))],
        failures=[record for record in records if record.state == "failed"],
    ) + "\n"  # fmt: skip


def provenance(tables: Sequence[Table], records: Sequence[Record]) -> list[tuple[str, str]]:
    """Returns what was run, by what, where and when; of what differs between records, how many are of each kind."""
    asked = [cells for table in tables for cells in (row.cells for row in table.rows)]
    started = sorted(record.started for record in records) or ["never"]
    return [
        ("cells", _cells_text(asked)),
        ("tasks", ", ".join(dict.fromkeys(table.block.task for table in tables))),
        ("targets", ", ".join(dict.fromkeys(table.block.target for table in tables))),
        ("methods", ", ".join(dict.fromkeys(cells.method for cells in asked))),
        ("seeds", ", ".join(str(seed) for seed in dict.fromkeys(s for cells in asked for s in cells.expected))),
        ("revision", _counted([record.revision for record in records])),
        ("versions", _counted([", ".join(f"{k} {v}" for k, v in sorted(r.versions.items())) for r in records])),
        ("device", _counted([f"{r.device}, {r.threads} thread{'s' * (r.threads != 1)}" for r in records])),
        ("started", f"{started[0]} to {started[-1]}"),
        ("device time", f"{sum(record.device_seconds for record in records) / 3600:,.2f} hours"),
        ("gradient steps", f"{sum(r.gradient_steps + r.search_gradient_steps for r in records):,}"),
    ]


def _cells_text(asked: Sequence[MethodCells]) -> str:
    counts = {
        "finished": sum(len(cells.records) for cells in asked),
        "failed": sum(len(cells.failed) for cells in asked),
        "missing": sum(len(cells.missing) for cells in asked),
        "there twice": sum(len(cells.doubled) for cells in asked),
    }
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count) or "none"


def _counted(values: Sequence[str]) -> str:
    """Returns the different values; where there are several, with their numbers of records."""
    counts = Counter(values)
    if len(counts) < 2:
        return next(iter(counts), "none")
    return "; ".join(f"{value} ({count} records)" for value, count in counts.most_common())


def _head(names: Sequence[str], words: frozenset[str]) -> list[Cell]:
    return [{"text": name, "word": name in words} for name in names]


def _table_rows(table: TextTable) -> list[list[Cell]]:
    return [
        [
            {
                "text": cell.text,
                "value": "" if cell.value is None else cell.value,
                "word": name in table.words,
                "bold": cell.bold,
            }
            for name, cell in zip(table.head, row, strict=True)
        ]
        for row in table.rows
    ]


def _cell_row(record: Record) -> list[Cell]:
    values: list[Any] = [record.task, record.target, record.method, record.seed, record.state, record.started]
    values += [round(record.wall_seconds, 1), round(record.peak_memory_bytes / 1e6)]
    values += [record.revision, record.device, record.spec_hash]
    return [
        {"text": str(value), "value": value, "word": name in CELL_WORDS, "bold": False}
        for name, value in zip(CELL_HEAD, values, strict=True)
    ]
