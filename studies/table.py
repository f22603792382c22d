"""The tables of a study as text: what stands in their cells and captions, and how they look in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from studies.rows import Row, Table
from studies.significance import FEWEST_SEEDS, LEVEL, REPLICATES

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
        f"{points(difference.mean)} [{points(difference.low)}, {points(difference.high)}]" if difference else NOTHING,
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


def to_markdown(name: str, tables: Sequence[Table], claims: Sequence[str] = ()) -> str:
    """Returns the tables under a heading, their caption, and the lines of `claims` as a list."""
    parts = [f"# {name}"]
    for table in tables:
        parts += [f"## {title(table)}", reference_line(table), markdown_table(HEAD, _bold_rows(table, "**{}**"), WORDS)]
    parts.append(caption(tables))
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


def _bold_rows(table: Table, bold: str) -> list[list[str]]:
    """Returns the cells of each row, method and accuracy of the best in bold."""
    rows = []
    for row in table.rows:
        cells = cells_of(row)
        rows.append([bold.format(cell) if row.best and i in (0, 3) else cell for i, cell in enumerate(cells)])
    return rows
