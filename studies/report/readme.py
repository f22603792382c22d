"""The README's tables of the studies: `python -m studies.report.readme` prints them from the committed records.

The first is of the compressor alone. In the second a row is a method that the compressor is compared with everywhere;
the tables of all methods, with intervals, are in `studies/results/NAME/table.md`. The third is the study of the family,
all in one table. Cells of different revisions are told of in the tables of their study.
"""

from __future__ import annotations

import pandas as pd
from pandas import DataFrame

from studies.finding import load_study
from studies.records.record import COMPRESSOR
from studies.report.frame import check_frame
from studies.report.names import task_name
from studies.report.tables import (
    NOTHING,
    ROW,
    blocks_of,
    comparison_table,
    file_range,
    markdown,
    mean_and_deviation,
    points,
    summarize,
    systems_table,
)
from studies.specs.lenet5_mnist import SEARCHES

STUDIES = ("digits", "lenet5-mnist", "resnet20-cifar10")
COLUMNS = ("method", "seeds", "test accuracy, %", "to compressor [95 % interval]", "verdict", "to reference",
           "file bytes", "of target, %", "search steps")  # fmt: skip
WORDS = frozenset({"network, data, target", "method", "verdict"})


def summary() -> str:
    """Returns the table of the studies in Markdown; cells that nobody has run yet are left out.

    Raises:
        InvalidInputError: no cell of a study is finished.
    """
    parts = []
    for name in STUDIES:
        table = _checked(name, partial=True)
        table = table[table["state"] == "finished"]
        for rows in blocks_of(summarize(table)):
            shown = comparison_table(rows[rows.index.isin((COMPRESSOR, *SEARCHES), level="method")], table)
            text = shown.text.reindex(columns=list(COLUMNS), fill_value=NOTHING)
            text.insert(0, "network, data, target", shown.title)
            parts.append(text)
    return markdown(pd.concat(parts), WORDS)


def sizes() -> str:
    """Returns the table of the compressor alone in Markdown; cells that nobody has run yet are left out.

    Raises:
        InvalidInputError: no cell is finished.
    """
    table = _checked("sizes", partial=True)
    rows = summarize(table[table["state"] == "finished"]).reset_index()
    epochs = table[table["state"] == "finished"].groupby(ROW)["gradient_steps"].mean()
    lines = [
        {
            "network, data": task_name(row.task),
            "target": f"`{row.target}`",
            "epochs": row.method.removeprefix(f"{COMPRESSOR}, ").removesuffix(" epochs"),
            "steps": f"{epochs[row.task, row.target, row.method]:,.0f}",
            "seeds": f"{row.seeds:.0f}",
            "file bytes": file_range(row.file_bytes_min, row.file_bytes_max),
            "weight data": f"{row.weight_data_factor:,.0f}x",
            "reference": f"{100 * row.reference_accuracy_mean:.2f} %",
            "compressed": f"{mean_and_deviation(row.test_accuracy_mean, row.test_accuracy_sd)} %",
            "difference": points(row.difference_to_reference),
        }
        for row in rows.itertuples()
    ]
    return markdown(DataFrame(lines), {"network, data", "target"})


def family() -> str:
    """Returns the table of all systems in Markdown."""
    table = systems_table(summarize(_checked("family")), "lenet5-digits")
    return markdown(table.text, table.words)


def _checked(name: str, *, partial: bool = False) -> DataFrame:
    table = load_study(name)
    check_frame(table, partial=partial, mixed=True)
    return table


if __name__ == "__main__":
    print(sizes(), summary(), family(), sep="\n\n")
