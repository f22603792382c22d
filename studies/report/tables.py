"""The tables of a study: numbers in one frame of pandas, a row for each task, target and method, and their text.

`summarize` makes the numbers (they are the CSV); `comparison_table` and `systems_table` make text of them, which is
written as Markdown, LaTeX and HTML.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from pandas import DataFrame, Series

from studies.records.record import COMPRESSOR
from studies.report.frame import BLOCK, RESOURCES, methods_of
from studies.report.names import block_name, method_name, target_name, task_name
from studies.report.statistics import EQUIVALENT_POINTS, LEVEL, MIN_SEEDS, RESAMPLES, aggregate, to_compressor

ROW = [*BLOCK, "method"]
NOTHING = "\N{EN DASH}"
# column of the numbers -> (column of the records, how they are taken together)
NUMBERS: Mapping[str, tuple[str, str]] = {
    "file_bytes_mean": ("file_bytes", "mean"),
    "file_bytes_min": ("file_bytes", "min"),
    "file_bytes_max": ("file_bytes", "max"),
    "used_mean": ("used", "mean"),
    "test_accuracy_mean": ("test_accuracy", "mean"),
    "test_accuracy_sd": ("test_accuracy", "std"),
    "validation_accuracy_mean": ("validation_accuracy", "mean"),
    "validation_loss_mean": ("validation_loss", "mean"),
    "reference_accuracy_mean": ("reference_accuracy", "mean"),
    "difference_to_reference": ("to_reference", "mean"),
    "entropy_bytes_mean": ("entropy_bytes", "mean"),
    "weight_data_bytes_mean": ("weight_data_bytes", "mean"),
    "weight_data_factor": ("weight_data_factor", "mean"),
    "code_bytes_mean": ("code_bytes", "mean"),
    "gradient_steps": ("gradient_steps", "mean"),
    "search_multiple": ("search_multiple", "mean"),
    "total_steps": ("total_steps", "mean"),
    "trials": ("trials_run", "mean"),
    "device_seconds": ("device_seconds", "mean"),
    **{f"{name}{end}": (name, how) for name in RESOURCES for end, how in (("_mean", "mean"), ("_sd", "std"))},
}
COMPARED = ("difference_to_compressor", "interval_low", "interval_high", "p", "p_holm")
SYSTEMS_NOTES = (
    "File: as it lies on disk. Entropy: ideal code length of what it holds. Weight data: bits times nonzeros, the "
    "literature's count. Energy, MACs, latency: of the network without the channels that no weight reads, for one "
    "input, as a part of the uncompressed network's; energy by the analytic accelerator model, which skips zeros; MACs "
    "with zeros counted; latency the median of 50 passes of 64 inputs on the CPU, in turns with the uncompressed "
    "network. Steps: gradient steps, those of a search included. Mean ± standard deviation over the seeds."
)


@dataclass(frozen=True)
class Table:
    """A table ready to be written.

    Attributes:
        title: heading.
        lead: a line above the table.
        text: what is read.
        values: what is sorted by, of the same shape; NaN comes last.
        notes: what the numbers are, of this table alone.
    """

    title: str
    lead: str
    text: DataFrame
    values: DataFrame
    notes: str

    @property
    def words(self) -> set[str]:
        return {str(name) for name in self.values if not pd.api.types.is_numeric_dtype(self.values[name])}


def summarize(table: DataFrame) -> DataFrame:
    """Returns the numbers: a row for each task, target and method asked for, in their order, the compressor first.

    Accuracies are fractions of 1; "verdict" and what it follows from are empty for the compressor and where the two
    have no seed in common.
    """
    finished = table[table["state"] == "finished"]
    finished = finished.assign(to_reference=finished["test_accuracy"] - finished["reference_accuracy"])
    asked = table.groupby(ROW, sort=False)["state"]
    counts = asked.value_counts().unstack(fill_value=0).reindex(columns=["finished", "failed", "missing"], fill_value=0)
    order = {method: place for place, method in enumerate(methods_of(table))}
    blocks = {block: place for place, block in enumerate(asked.count().index.droplevel("method").unique())}
    index = sorted(asked.count().index, key=lambda row: (blocks[row[:2]], order[row[2]]))
    grouped = finished.groupby(ROW, sort=False)
    numbers = DataFrame({name: grouped[column].agg(how) for name, (column, how) in NUMBERS.items()})
    rows = counts.join(numbers).reindex(index).rename(columns={"finished": "seeds"})
    rows = rows.assign(**dict.fromkeys(COMPARED, np.nan), verdict="")
    for block, cells in finished.groupby(BLOCK, sort=False):
        for method, found in to_compressor(cells).items():
            rows.loc[(*block, method), list(COMPARED)] = [found.mean, found.low, found.high, found.p, found.p_holm]
            rows.loc[(*block, method), "verdict"] = found.verdict
    return rows.rename_axis(ROW)


def to_csv(summary: DataFrame) -> str:
    """Returns the numbers as CSV, eight digits of each."""
    return str(summary.reset_index().to_csv(index=False, float_format="%.8g", lineterminator="\n"))


def blocks_of(summary: DataFrame) -> list[DataFrame]:
    """Returns the rows of each task and target."""
    return [rows for _, rows in summary.groupby(BLOCK, sort=False)]


def comparison_table(rows: DataFrame, table: DataFrame) -> Table:
    """Returns the table of one task and target, each method beside the compressor, no empty column."""
    task, target, _ = rows.index[0]
    cells = table[(table["task"] == task) & (table["target"] == target) & (table["state"] == "finished")]
    columns: dict[str, tuple[Callable[[Series], str], str]] = {
        "method": (lambda row: method_name(row["method"]), "method"),
        "seeds": (_seeds, "seeds"),
        "test accuracy, %": (_accuracy, "test_accuracy_mean"),
        "to compressor [95 % interval]": (with_interval, "difference_to_compressor"),
        "verdict": (lambda row: row["verdict"] or NOTHING, "verdict"),
        "to reference": (lambda row: points(row["difference_to_reference"]), "difference_to_reference"),
        "file bytes": (lambda row: file_range(row["file_bytes_min"], row["file_bytes_max"]), "file_bytes_mean"),
        "of target, %": (lambda row: f"{100 * row['used_mean']:.1f}", "used_mean"),
        "weight data": (lambda row: f"{row['weight_data_factor']:,.0f}x", "weight_data_factor"),
        "steps": (lambda row: f"{row['gradient_steps']:,.0f}", "gradient_steps"),
        "search steps": (lambda row: f"{row['search_multiple']:.1f}x", "search_multiple"),
        "trials": (lambda row: f"{row['trials']:,.0f}", "trials"),
        "device s": (lambda row: f"{row['device_seconds']:,.0f}", "device_seconds"),
    }
    text, values = _text(rows, columns)
    searched = {"search_multiple", "trials"} if not rows["trials"].any() else set[str]()
    empty = searched | {str(name) for name in rows if _is_empty(rows[name])}
    kept = [name for name, (_, source) in columns.items() if source not in empty]
    return Table(block_name(task, target), reference_line(cells), text[kept], values[kept], caption([rows]))


def systems_table(summary: DataFrame, task: str) -> Table:
    """Returns one table of all targets of one task: what each network holds, and what it takes to run."""
    rows = summary[summary.index.get_level_values("task") == task]
    plain = {
        "file bytes": "file_bytes_mean",
        "entropy bytes": "entropy_bytes_mean",
        "weight data bytes": "weight_data_bytes_mean",
    }
    shares = {"energy, %": "energy", "MACs, %": "macs", "latency, %": "latency"}
    columns: dict[str, tuple[Callable[[Series], str], str]] = {
        "method": (lambda row: method_name(row["method"]), "method"),
        "asked for": (lambda row: target_name(row["target"]), "target"),
        "seeds": (_seeds, "seeds"),
        "test accuracy, %": (_accuracy, "test_accuracy_mean"),
        "to reference": (lambda row: points(row["difference_to_reference"]), "difference_to_reference"),
        **{name: (_whole(source), source) for name, source in plain.items()},
        **{name: (_share(source), f"{source}_mean") for name, source in shares.items()},
        "steps": (_whole("total_steps"), "total_steps"),
    }
    text, values = _text(rows, columns)
    return Table(f"{task_name(task)}, all systems", SYSTEMS_NOTES, text, values, "")


def aggregate_table(table: DataFrame) -> Table | None:
    """Returns the interquartile means over all tasks and targets; None where there is one block, or no comparison."""
    found = aggregate(table)
    if found.empty or found["blocks"].max() < 2:
        return None
    found = found.sort_values("iqm", ascending=False)
    rows = found.rename_axis("method").reset_index()
    text = DataFrame(
        {
            "method": rows["method"].map(method_name),
            "tasks and targets": rows["blocks"].astype(int).astype(str),
            "cells": rows["cells"].astype(int).astype(str),
            "to compressor [95 % interval]": [
                f"{points(row.iqm)} {interval(row.low, row.high)}".strip() for row in rows.itertuples()
            ],
        }
    )
    values = DataFrame(dict(zip(text, (rows[name] for name in ("method", "blocks", "cells", "iqm")), strict=True)))
    lead = (
        "Interquartile mean of test accuracy minus the compressor's, in points, over all cells with the same task, "
        f"target and seed; 95 % interval by a bootstrap stratified by task and target ({RESAMPLES:,} resamples)."
    )
    return Table("All tasks and targets", lead, text, values, "")


def _text(rows: DataFrame, columns: Mapping[str, tuple[Callable[[Series], str], str]]) -> tuple[DataFrame, DataFrame]:
    """Returns the text of some rows and what it is sorted by; of a row without a finished cell no more than that."""
    flat = rows.reset_index()
    known = ("method", "asked for", "seeds")
    text = DataFrame(
        [
            [make(row) if row["seeds"] or name in known else NOTHING for name, (make, _) in columns.items()]
            for _, row in flat.iterrows()
        ],
        columns=list(columns),
    )
    values = DataFrame({name: flat[source] for name, (_, source) in columns.items()})
    return text.where(values.notna() | (values.dtypes.map(pd.api.types.is_object_dtype)), NOTHING), values


def _is_empty(column: Series) -> bool:
    return bool(column.isna().all() or (column.astype(str) == "").all())


def _whole(name: str) -> Callable[[Series], str]:
    return lambda row: f"{row[name]:,.0f}"


def _share(name: str) -> Callable[[Series], str]:
    def text(row: Series) -> str:
        mean, deviation = 100 * row[f"{name}_mean"], 100 * row[f"{name}_sd"]
        return f"{mean:.0f}" + (f" ± {deviation:.0f}" if deviation >= 0.5 else "")

    return text


def _seeds(row: Series) -> str:
    """Returns the number of seeds; where cells are not as they should be, how many and what is wrong."""
    wrong = [f"{row[state]:.0f} {state}" for state in ("failed", "missing") if row[state]]
    if not wrong:
        return f"{row['seeds']:.0f}"
    return ", ".join([f"{row['seeds']:.0f} of {row['seeds'] + row['failed'] + row['missing']:.0f}", *wrong])


def file_range(smallest: float, largest: float) -> str:
    """Returns the sizes of files, the smallest and the largest."""
    return f"{smallest:,.0f}" if smallest == largest else f"{smallest:,.0f} to {largest:,.0f}"


def _accuracy(row: Series) -> str:
    return mean_and_deviation(row["test_accuracy_mean"], row["test_accuracy_sd"])


def points(fraction: float) -> str:
    """Returns a difference of accuracies in points, with its sign; nothing is left of what rounds to zero."""
    text = f"{100 * fraction:+.2f}"
    return "0.00" if float(text) == 0 else text


def interval(low: float, high: float) -> str:
    """Returns an interval in points; "" where there is none."""
    return "" if np.isnan(low) else f"[{points(low)}, {points(high)}]"


def with_interval(row: Series) -> str:
    """Returns a row's difference to the compressor in points, with its interval."""
    if np.isnan(row["difference_to_compressor"]):
        return NOTHING
    return f"{points(row['difference_to_compressor'])} {interval(row['interval_low'], row['interval_high'])}"


def mean_and_deviation(mean: float, deviation: float) -> str:
    """Returns percent, with the deviation where there is one."""
    return f"{100 * mean:.2f}" + ("" if np.isnan(deviation) else f" ± {100 * deviation:.2f}")


def reference_line(cells: DataFrame) -> str:
    """Returns what the uncompressed network scores, by the finished cells of a block."""
    if cells.empty:
        return "No cell is finished."
    by_seed = cells.drop_duplicates("seed")["reference_accuracy"]
    return f"Uncompressed reference: {mean_and_deviation(by_seed.mean(), by_seed.std())} % on the test split."


def caption(blocks: Sequence[DataFrame]) -> str:
    """Returns what the numbers are and how they were tested."""
    families = sorted({int((rows["verdict"] != "").sum()) for rows in blocks} - {0})
    lines = [
        "Test accuracy: mean ± standard deviation over the seeds; differences in points. Nothing was chosen on the "
        "test split. Of target: part of what the target allows.",
    ]
    if families:
        lines += [
            "To compressor: accuracy minus the compressor's with the same seeds; 95 % interval (of each alone) and "
            "two-sided paired t test with the variance of a crossed design, seeds and test examples both drawn at "
            f"random; p-values corrected by Holm's method for the {' or '.join(map(str, families))} methods of a "
            "table. "
            f"Better or worse: corrected p < {LEVEL}; equivalent: neither, and the interval lies within "
            f"{EQUIVALENT_POINTS} points; undecided: all else, and all with fewer than {MIN_SEEDS} seeds.",
        ]
        if any((rows["seeds"] == 1).any() for rows in blocks):
            lines.append("Of one seed the interval is over test examples alone.")
    lines += [
        "Weight data: 32 bits per compressible weight over bits times nonzeros. Steps: gradient steps of the run that "
        "ends in the file. Search steps: of all trials before it, as a multiple of these. Device s: both together.",
    ]
    if any((rows["failed"] + rows["missing"]).any() for rows in blocks):
        lines.insert(0, "Not complete: the column of the seeds says what is missing or failed.")
    return " ".join(lines)


def to_markdown(name: str, tables: Sequence[Table], notes: Sequence[str], said: Sequence[str] = ()) -> str:
    """Returns the tables under a heading, their notes, and what the study says as a list."""
    parts = [f"# {name}"]
    if said:
        parts += ["## What it says", "\n".join(f"- {line}" for line in said)]
    for table in tables:
        parts += [f"## {table.title}", table.lead, markdown(table.text, table.words)]
    return "\n\n".join([*parts, *notes]) + "\n"


def markdown(text: DataFrame, words: set[str] | frozenset[str] = frozenset()) -> str:
    """Returns one table in which the columns are aligned in the source, too; those not of `words` flush right."""
    cells = [[str(cell).replace("|", r"\|") for cell in row] for row in [list(text), *text.to_numpy().tolist()]]
    widths = [max(len(row[place]) for row in cells) for place in range(len(text.columns))]
    left = [str(name) in words for name in text]
    lines = [
        f"| {' | '.join(c.ljust(w) if at else c.rjust(w) for c, w, at in zip(row, widths, left, strict=True))} |"
        for row in cells
    ]
    rule = "|".join("-" * (w + 2) if at else "-" * (w + 1) + ":" for w, at in zip(widths, left, strict=True))
    return "\n".join([lines[0], f"|{rule}|", *lines[1:]])


_ESCAPES = {"\\": r"\textbackslash{}", **{sign: f"\\{sign}" for sign in "&%$#_{}"}, "~": r"\textasciitilde{}"} | {
    "^": r"\textasciicircum{}", "\N{MINUS SIGN}": "$-$", "±": r"$\pm$", NOTHING: "--", "<": "$<$", ">": "$>$"
}  # fmt: skip


def latex_text(text: str) -> str:
    """Returns text as LaTeX; a number's minus is a minus."""
    signs = re.sub(r"(?<![\w)])-(?=\d)", "\N{MINUS SIGN}", text)
    return "".join(_ESCAPES.get(sign, sign) for sign in signs)


def to_latex(name: str, tables: Sequence[Table]) -> str:
    """Returns one `table*` for each table, for a document that uses the packages booktabs and graphicx."""
    parts = [f"% Tables of the study {name.replace(chr(10), ' ')}. Needs \\usepackage{{booktabs, graphicx}}."]
    for table in tables:
        text = table.text.map(latex_text).rename(columns=latex_text)
        columns = "".join("l" if str(column) in table.words else "r" for column in table.text)
        body = text.to_latex(index=False, escape=False, column_format=columns)
        said = latex_text(f"{table.title}. {table.lead} {table.notes}".strip())
        parts += [
            f"\\begin{{table*}}\n\\centering\n\\caption{{{said}}}",
            f"\\resizebox{{\\textwidth}}{{!}}{{%\n{body.strip()}}}\n\\end{{table*}}\n",
        ]
    return "\n".join(parts)


def has_comparison(rows: DataFrame) -> bool:
    """Tells whether a task and target has the compressor beside others."""
    return COMPRESSOR in rows.index.get_level_values("method") and len(rows) > 1
