"""A study's records turned into its tables, figures and page.

The command line calls two functions:

    report_command(name, records, expected_keys, out_dir, *, partial=False, description="") -> str
    compare_command(name_a, records_a, name_b, records_b, *, partial=False) -> str

Both return Markdown for stdout and raise InvalidInputError for records that no table may be made from.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from autocompress.codec.atomic_write import write_whole
from studies.blocks import collect
from studies.claims import claims
from studies.latex import to_latex
from studies.overview import measured, overview_table
from studies.page import provenance, to_html
from studies.plots import draw_figures
from studies.record import Key, Record
from studies.rows import make_tables
from studies.side_by_side import compare_command
from studies.spreadsheet import to_csv
from studies.table import TextTable, caption, comparison_table, to_markdown

__all__ = ["compare_command", "report_command"]


def report_command(
    name: str,
    records: Sequence[Record],
    expected_keys: Sequence[Key],
    out_dir: Path,
    *,
    partial: bool = False,
    description: str = "",
) -> str:
    """Writes table.md, table.csv, table.tex, figures/*.png and page.html into a folder; returns the Markdown table.

    Args:
        name: of the study.
        records: all that were read, in any order; a failed record of a cell that was finished later does not count.
        expected_keys: the cells that the study asks for: (task, method, target, seed), in the order of the table.
        out_dir: where it is written; created if it is not there.
        partial: missing, failed and duplicate cells are marked in the tables instead of being an error.
        description: of the study and its configuration, plain text; lines are kept.

    Raises:
        InvalidInputError: cells are missing, failed, there twice or not asked for, or a record is not sound.
    """
    blocks = collect(records, expected_keys, partial=partial)
    tables = make_tables(blocks)
    together: list[TextTable] = []
    compared = tables
    if measured(blocks):  # then one table has everything, and one method alone is not compared with nothing
        tasks = dict.fromkeys(block.task for block in blocks)
        together = [overview_table([table for table in tables if table.block.task == task]) for task in tasks]
        compared = [table for table in tables if len(table.rows) > 1]
    said = claims(compared)
    figures = draw_figures([table.block for table in compared])
    texts = [*together, *map(comparison_table, compared)]
    notes = [caption(compared)] if compared else []
    markdown = to_markdown(name, texts, notes, said)
    files = {
        "table.md": markdown.encode(),
        "table.csv": to_csv(tables).encode(),
        "table.tex": to_latex(name, texts).encode(),
        "page.html": to_html(
            name, texts, notes, said, figures, provenance(tables, records), records, description
        ).encode(),
        **{f"figures/{figure.name}.png": figure.png for figure in figures},
    }
    _remove_old_figures(out_dir / "figures", {f"{figure.name}.png" for figure in figures})
    for path, data in files.items():
        write_file(out_dir / path, data)
    return markdown


def write_file(path: Path, data: bytes) -> None:
    """Writes a file, its folder first, so that nobody ever sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, data)


def _remove_old_figures(folder: Path, kept: set[str]) -> None:
    """Removes the figures of an earlier report that this one does not have."""
    for path in folder.glob("*.png"):
        if path.name not in kept:
            path.unlink()
