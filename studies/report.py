"""A study's records turned into its tables, figures and page.

The command line calls two functions:

    report_command(name, records, expected_keys, out_dir, *, partial=False, description="") -> str
    compare_command(name_a, records_a, name_b, records_b, *, partial=False) -> str

Both return Markdown for stdout and raise InvalidInputError for records that no table may be made from.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from studies.record import Key, Record


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
    raise NotImplementedError


def compare_command(
    name_a: str, records_a: Sequence[Record], name_b: str, records_b: Sequence[Record], *, partial: bool = False
) -> str:
    """Returns a Markdown table of the cells that two studies share: differences of accuracy and size, and which count.

    Args:
        name_a, name_b: of the studies.
        records_a, records_b: their records.
        partial: failed and duplicate cells are left out instead of being an error.

    Raises:
        InvalidInputError: nothing is in both, or a record is not sound.
    """
    raise NotImplementedError
