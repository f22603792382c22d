"""The README's tables of the studies: `python -m studies.benchmarks.summary` prints them from the committed records.

In the first a row is a method that the compressor is compared with everywhere; the tables of all methods, with
intervals, are in `studies/results/NAME/table.md`. The second is the study of the family, all in one table.
"""

from __future__ import annotations

from studies.blocks import collect
from studies.cell import cells_of
from studies.finding import find_study
from studies.overview import overview_table
from studies.record import COMPRESSOR
from studies.rows import Row, Table, make_tables
from studies.specs.lenet5_mnist import SEARCHES
from studies.store import records_of
from studies.table import NOTHING, markdown_table, mean_and_deviation, points, with_interval

STUDIES = ("digits", "lenet5-mnist", "resnet20-cifar10")
METHODS = (COMPRESSOR, *SEARCHES)
HEAD = (
    "network, data, target",
    "method",
    "seeds",
    "file bytes",
    "test accuracy, %",
    "to reference",
    "to compressor [95 % interval]",
    "verdict",
    "search steps",
)
WORDS = frozenset({"network, data, target", "method", "verdict"})


def summary() -> str:
    """Returns the table in Markdown.

    Raises:
        InvalidInputError: a cell of a study is missing, failed or there twice.
    """
    lines = []
    for table in (table for name in STUDIES for table in _tables(name)):
        what = f"{table.block.task}, `{table.block.target}`"
        lines += [_line(what, row) for row in table.rows if row.cells.method in METHODS]
    return markdown_table(HEAD, lines, WORDS)


def family() -> str:
    """Returns the table of all systems in Markdown.

    Raises:
        InvalidInputError: as `summary`.
    """
    table = overview_table(_tables("family"))
    return markdown_table(table.head, [[cell.text for cell in row] for row in table.rows], table.words)


def _tables(name: str) -> list[Table]:
    """Returns the tables of one of the project's own studies."""
    spec, folder = find_study(name)
    cells = cells_of(spec)
    return make_tables(collect(records_of(cells, folder), [cell.key for cell in cells]))


def _line(what: str, row: Row) -> list[str]:
    found, difference = row.summary, row.difference
    assert found is not None  # `collect` has seen to it
    _, smallest, largest = found.file_bytes
    return [
        what,
        row.cells.method,
        row.seeds,
        f"{smallest:,} to {largest:,}",
        mean_and_deviation(found.accuracy, found.accuracy_sd),
        points(found.to_reference),
        with_interval(difference) if difference else NOTHING,
        difference.verdict if difference else NOTHING,
        f"{found.search_multiple:.1f}x",
    ]


if __name__ == "__main__":
    print(summary(), family(), sep="\n\n")
