"""A study's records turned into its tables, figures and page.

The command line calls `report_command`; it returns Markdown for stdout and raises InvalidInputError for records that no
table may be made from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pandas import DataFrame

from autocompress.codec.atomic_write import write_whole
from studies.records.record import Key, Record
from studies.report.frame import check_frame, frame_of, mixtures
from studies.report.page import to_html
from studies.report.plots import draw_figures
from studies.report.sentences import claims, finding
from studies.report.tables import (
    Table,
    aggregate_table,
    blocks_of,
    caption,
    comparison_table,
    summarize,
    systems_table,
    to_csv,
    to_latex,
    to_markdown,
)


@dataclass(frozen=True)
class Report:
    """What is said of a study in words and tables.

    Attributes:
        finding: one sentence, or "".
        claims: lines.
        tables: in their order.
        notes: what the numbers are; first what the cells do not have in common.
    """

    finding: str
    claims: list[str]
    tables: list[Table]
    notes: list[str]


def make_report(table: DataFrame, summary: DataFrame) -> Report:
    """Returns the words and tables of a study.

    Where its networks were measured, one table has everything, and one method alone is not compared with nothing.
    """
    blocks = blocks_of(summary)
    measured = bool(summary["energy_mean"].notna().any())
    compared = [rows for rows in blocks if len(rows) > 1 or not measured]
    tasks = dict.fromkeys(str(rows.index[0][0]) for rows in blocks)
    tables = [systems_table(summary, task) for task in tasks] if measured else []
    tables += [comparison_table(rows, table) for rows in compared]
    together = None if measured else aggregate_table(table)
    notes = [f"Mixed: {line}." for line in mixtures(table)] + ([caption(compared)] if compared else [])
    return Report(finding(summary), claims(summary, table), [*tables, *([together] if together else [])], notes)


def report_command(
    name: str,
    records: Sequence[Record],
    expected_keys: Sequence[Key],
    out_dir: Path,
    *,
    partial: bool = False,
    mixed: bool = False,
    description: str = "",
) -> str:
    """Writes table.md, table.csv, table.tex, figures/*.png, *.pdf and page.html into a folder; returns the Markdown.

    Args:
        name: of the study.
        records: of its cells, in any order.
        expected_keys: the cells that the study asks for: (task, method, target, seed), in the order of the table.
        out_dir: where it is written; created if it is not there.
        partial: missing and failed cells are marked in the tables instead of being an error.
        mixed: cells of different references or revisions are told instead of being an error.
        description: of the study and its configuration, plain text; lines are kept.

    Raises:
        InvalidInputError: cells are missing, failed, there twice, not asked for or not comparable, or not sound.
    """
    asked = set(expected_keys)
    table = frame_of([record for record in records if record.key in asked], expected_keys)
    unasked = [record.key for record in records if record.key not in asked]
    check_frame(table, unasked, partial=partial, mixed=mixed)
    summary = summarize(table)
    report = make_report(table, summary)
    figures = draw_figures(table, summary)
    said = [line for line in (report.finding, *report.claims) if line]
    markdown = to_markdown(name, report.tables, report.notes, said)
    files = {
        "table.md": markdown.encode(),
        "table.csv": to_csv(summary).encode(),
        "table.tex": to_latex(name, report.tables).encode(),
        "page.html": to_html(name, report, figures, table, description).encode(),
        **{f"figures/{figure.name}.{kind}": data for figure in figures for kind, data in figure.files.items()},
    }
    _remove_old_figures(out_dir / "figures", {path for path in files if path.startswith("figures/")})
    for path, data in files.items():
        write_file(out_dir / path, data)
    return markdown


def write_file(path: Path, data: bytes) -> None:
    """Writes a file, its folder first, so that nobody ever sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, data)


def _remove_old_figures(folder: Path, kept: set[str]) -> None:
    """Removes the figures of an earlier report that this one does not have."""
    for path in [*folder.glob("*.png"), *folder.glob("*.pdf")]:
        if f"figures/{path.name}" not in kept:
            path.unlink()
