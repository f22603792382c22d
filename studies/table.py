"""The tables of a study as text: what stands in their cells and captions, and how they look in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from studies.rows import Row, Table
from studies.significance import FEWEST_SEEDS, LEVEL, REPLICATES, Difference

HEAD = (
    "method",
    "seeds",
    "file bytes",
    "test accuracy, %",
    "to reference",
    "to compressor [95 % interval]",
    "verdict",
    "weight data",
    "steps",
    "search steps",
    "device s",
)
# Columns of words; all others are numbers and stand flush right.
WORDS = frozenset({"method", "verdict"})
NOTHING = "\N{EN DASH}"


@dataclass(frozen=True)
class TextCell:
    """What stands in one place of a table.

    Attributes:
        text: as it is read.
        value: that it is sorted by; None comes last.
        bold: whether it stands out.
    """

    text: str
    value: str | float | None
    bold: bool = False


@dataclass(frozen=True)
class TextTable:
    """A table ready to be written in Markdown, LaTeX or HTML.

    Attributes:
        title: heading.
        lead: a line above the table.
        head: the columns' names.
        words: those of them that hold words and stand flush left.
        rows: cells in the order of the columns.
        notes: what the numbers are, of this table alone.
    """

    title: str
    lead: str
    head: tuple[str, ...]
    words: frozenset[str]
    rows: tuple[tuple[TextCell, ...], ...]
    notes: str


def comparison_table(table: Table) -> TextTable:
    """Returns the table of one task and target, each method beside the compressor."""
    rows = tuple(_text_cells(row) for row in table.rows)
    return TextTable(title(table), reference_line(table), HEAD, WORDS, rows, caption([table]))


def _text_cells(row: Row) -> tuple[TextCell, ...]:
    """Returns a row's cells with what they sort by, method and accuracy of the best in bold."""
    summary, difference = row.summary, row.difference
    values: list[str | float | None] = [row.cells.method, len(row.cells.records), *[None] * (len(HEAD) - 2)]
    if summary is not None:
        values[2:5] = [summary.file_bytes[0], summary.accuracy, summary.to_reference]
        values[7:] = [
            summary.weight_data_factor,
            summary.gradient_steps,
            summary.search_multiple,
            summary.device_seconds,
        ]
    if difference is not None:
        values[5:7] = [difference.mean, difference.verdict]
    bold = ("method", "test accuracy, %") if row.best else ()
    texts = zip(HEAD, cells_of(row), values, strict=True)
    return tuple(TextCell(text, value, name in bold) for name, text, value in texts)


def cells_of(row: Row) -> list[str]:
    """Returns the text of a row's cells, under `HEAD`; where no cell is finished there is nothing to say but that."""
    summary, difference = row.summary, row.difference
    if summary is None:
        return [row.cells.method, row.seeds, *[NOTHING] * (len(HEAD) - 2)]
    _, smallest, largest = summary.file_bytes
    return [
        row.cells.method,
        row.seeds,
        f"{smallest:,}" if smallest == largest else f"{smallest:,} to {largest:,}",
        mean_and_deviation(summary.accuracy, summary.accuracy_sd),
        points(summary.to_reference),
        with_interval(difference) if difference else NOTHING,
        difference.verdict if difference else NOTHING,
        f"{summary.weight_data_factor:,.0f}x",
        f"{summary.gradient_steps:,.0f}",
        f"{summary.search_multiple:.1f}x",
        f"{summary.device_seconds:,.0f}" if summary.device_seconds >= 10 else f"{summary.device_seconds:.1f}",
    ]


def points(fraction: float) -> str:
    """Returns a difference of accuracies in points, with its sign; nothing is left of what rounds to zero."""
    text = f"{100 * fraction:+.2f}"
    return "0.00" if float(text) == 0 else text


def with_interval(difference: Difference) -> str:
    """Returns a difference in points, with its interval."""
    return f"{points(difference.mean)} [{points(difference.low)}, {points(difference.high)}]"


def mean_and_deviation(mean: float, deviation: float | None) -> str:
    """Returns percent, with the deviation where there is one."""
    return f"{100 * mean:.2f}" + ("" if deviation is None else f" ± {100 * deviation:.2f}")


def title(table: Table) -> str:
    """Returns the task and target."""
    return f"{table.block.task}, {table.block.target}"


def reference_line(table: Table) -> str:
    """Returns what the uncompressed network scores."""
    if table.reference is None:
        return "No cell is finished."
    return f"Uncompressed reference: {mean_and_deviation(*table.reference)} % on the test split."


def caption(tables: Sequence[Table]) -> str:
    """Returns what the numbers are and how they were tested."""
    families = sorted({table.compared for table in tables if table.compared})
    family = " or ".join(map(str, families))
    lines = [
        "Test accuracy: mean ± standard deviation over the seeds; differences in points. Nothing was chosen on the "
        "test split.",
    ]
    if families:
        lines += [
            "To compressor: accuracy minus the compressor's with the same seeds; symmetric 95 % interval (of each "
            "alone) and two-sided test by a paired bootstrap over seeds and test examples "
            f"({REPLICATES:,} replicates, spread to the variance of a crossed design and a t's tails), p-values "
            f"corrected by Holm's method for the {family} methods of a table. Better or worse: corrected p < {LEVEL}; "
            f"tie: no difference detected; n < {FEWEST_SEEDS}: too few seeds for a claim.",
        ]
    lines += [
        "Bold: better than every other method, corrected for all pairs of a table.",
        "Weight data: 32 bits per compressible weight over bits times nonzeros. Steps: gradient steps of the run that "
        "ends in the file. Search steps: of all trials before it, as a multiple of these. Device s: both together.",
    ]
    if any(len(row.cells.records) == 1 for table in tables for row in table.rows):
        lines.insert(-2, "Of one seed the interval is over test examples alone.")
    if any(not row.cells.whole for table in tables for row in table.rows):
        lines.insert(0, "Not complete: the column of the seeds says what is missing, failed or there twice.")
    return " ".join(lines)


def to_markdown(name: str, tables: Sequence[TextTable], notes: Sequence[str], claims: Sequence[str] = ()) -> str:
    """Returns the tables under a heading, their notes, and the lines of `claims` as a list."""
    parts = [f"# {name}"]
    for table in tables:
        cells = [[f"**{cell.text}**" if cell.bold else cell.text for cell in row] for row in table.rows]
        parts += [f"## {table.title}", table.lead, markdown_table(table.head, cells, table.words)]
    parts += notes
    if claims:
        parts += ["## What it says", "\n".join(f"- {claim}" for claim in claims)]
    return "\n\n".join(parts) + "\n"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]], words: frozenset[str] = frozenset()) -> str:
    """Returns one table in which the columns are aligned in the source, too; those not of `words` flush right."""
    rows = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    widths = [max(len(line[i]) for line in [head, *rows]) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.ljust(width) if column in words else cell.rjust(width)
            for cell, width, column in zip(cells, widths, head, strict=True)
        )
        return f"| {' | '.join(padded)} |"

    columns = zip(widths, head, strict=True)
    rule = ["-" * (width + 2) if column in words else "-" * (width + 1) + ":" for width, column in columns]
    return "\n".join([line(head), f"|{'|'.join(rule)}|", *map(line, rows)])
