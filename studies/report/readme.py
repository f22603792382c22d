"""The tables and the figure of the README and of docs, from the committed records.

`python -m studies.report.readme` writes them into their places: what stands between `<!-- NAME -->` and
`<!-- /NAME -->`, and one PNG. Cells that nobody has run yet are left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import pandas as pd
from pandas import DataFrame, Series

from autocompress.codec.atomic_write import write_whole
from autocompress.targets import FileSize, parse_target
from studies.experiments import claims
from studies.records.record import COMPRESSOR
from studies.report.frame import mixtures
from studies.report.headline import STUDIES, finished, headline, percent
from studies.report.names import task_name
from studies.report.plots.accuracy_by_size import accuracy_by_size
from studies.report.plots.style import Drawing
from studies.report.statistics import MIN_SEEDS
from studies.report.tables import (
    NOTHING,
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

ROOT = Path(__file__).parents[2]
COLUMNS = ("method", "seeds", "test accuracy, %", "to compressor [95 % interval]", "verdict", "to reference",
           "file bytes", "of target, %", "search steps")  # fmt: skip
LONGEST_TASK = "resnet20-cifar10"


def alone() -> str:
    """Returns two sentences on the compressor alone: the longest run of the largest network, and the worst of all."""
    rows = _alone("sizes")
    longest = rows.loc[rows.loc[rows["task"] == LONGEST_TASK, "epochs"].idxmax()]
    worst = rows.loc[rows["difference_to_reference"].idxmin()]
    return f"The compressor alone, trained for longer: {_sentence(longest)} The worst of these runs: {_sentence(worst)}"


def _sentence(row: Series) -> str:
    seeds = f"{row['seeds']:.0f} seed" + ("s" if row["seeds"] > 1 else "")
    return (
        f"{task_name(row['task'])} at `{row['target']}`, {row['epochs']} epochs, {seeds}: {percent(row)} % where the "
        f"uncompressed network has {100 * row['reference_accuracy_mean']:.2f} %."
    )


def _alone(study: str) -> DataFrame:
    rows = summarize(finished(study)).reset_index()
    rows = rows[rows["seeds"] > 0]
    return rows.assign(epochs=rows["method"].str.extract(r"(\d+) epochs", expand=False).fillna("0").astype(int))


def figure() -> Drawing:
    """Returns the README's figure: of each task that has enough seeds the compressor and the searches, by file size."""
    summaries, budgets = zip(*_points(), strict=True)
    return accuracy_by_size("accuracy-by-size", "Test accuracy against the size of the file", summaries, budgets)


def figure_numbers() -> str:
    """Returns what the figure shows as CSV: a row for each point."""
    columns = ["seeds", "file_bytes_mean", "test_accuracy_mean", "test_accuracy_sd"]
    rows = pd.concat([rows[columns] for rows, _ in _points()]).reset_index()
    return str(rows.to_csv(index=False, float_format="%.6g", lineterminator="\n"))


def _points() -> list[tuple[DataFrame, list[int]]]:
    """Returns of each task the rows whose target is a file size, and these sizes in bytes."""
    found = []
    for name in STUDIES:
        table = finished(name)
        rows = summarize(table[table["method"].isin((COMPRESSOR, *SEARCHES))])
        rows = rows[rows["seeds"] >= MIN_SEEDS]
        original = int(table["original_bytes"].iloc[0])
        targets = {str(target): parse_target(str(target)) for target in rows.index.unique("target")}
        sizes = {name: size.resolve(original, 0) for name, size in targets.items() if isinstance(size, FileSize)}
        if sizes:
            found.append((rows[rows.index.isin(sizes, level="target")], list(sizes.values())))
    return found


def summary() -> str:
    """Returns the table of the studies in Markdown: the methods that the compressor is compared with everywhere.

    Raises:
        InvalidInputError: no cell of a study is finished.
    """
    parts = []
    for name in STUDIES:
        table = finished(name)
        for rows in blocks_of(summarize(table)):
            shown = comparison_table(rows[rows.index.isin((COMPRESSOR, *SEARCHES), level="method")], table)
            text = shown.text.reindex(columns=list(COLUMNS), fill_value=NOTHING)
            text.insert(0, "network, data, target", shown.title)
            parts.append(text)
    return markdown(pd.concat(parts), {"network, data, target", "method", "verdict"})


def mixed() -> str:
    """Returns what the cells of the studies do not have in common, as a list."""
    lines = [f"- `{name}`: {line}" for name in STUDIES for line in mixtures(finished(name))]
    return "\n".join(lines) or "All cells of a study are of one revision, and of the same references."


def sizes(study: str = "sizes") -> str:
    """Returns the table of a study of the compressor alone in Markdown.

    Raises:
        InvalidInputError: no cell is finished.
    """
    lines = [
        {
            "network, data": task_name(row.task),
            "target": f"`{row.target}`",
            "epochs": str(row.epochs),
            "steps": f"{row.gradient_steps:,.0f}",
            "seeds": f"{row.seeds:.0f}",
            "file bytes": file_range(row.file_bytes_min, row.file_bytes_max),
            "weight data": f"{row.weight_data_factor:,.0f}x",
            "reference": f"{100 * row.reference_accuracy_mean:.2f} %",
            "compressed": f"{mean_and_deviation(row.test_accuracy_mean, row.test_accuracy_sd)} %",
            "difference": points(row.difference_to_reference),
        }
        for row in _alone(study).itertuples()
    ]
    return markdown(DataFrame(lines), {"network, data", "target"})


def family() -> str:
    """Returns the table of every kind of target on one network in Markdown.

    Raises:
        InvalidInputError: no cell is finished.
    """
    table = systems_table(summarize(finished("family")), "lenet5-digits")
    return markdown(table.text, table.words)


# file -> name of a place in it -> what stands there
PLACES: Mapping[str, Mapping[str, Callable[[], str]]] = {
    "README.md": {"results": headline, "alone": alone},
    "docs/results.md": {
        "sizes": sizes,
        "without-training": partial(sizes, "without-training"),
        "studies": summary,
        "mixed": mixed,
        "family": family,
    },
}
FIGURE = "docs/images/accuracy-by-size"


def filled(text: str, places: Mapping[str, Callable[[], str]]) -> str:
    """Returns a document with each of its places filled.

    Raises:
        ValueError: the document has no such place, or several.
    """
    for name, make in places.items():
        parts = re.split(rf"(?<=<!-- {name} -->\n).*?(?=\n<!-- /{name} -->)", text, flags=re.DOTALL)
        if len(parts) != 2:
            raise ValueError(f"{len(parts) - 1} places <!-- {name} --> instead of one")
        text = make().join(parts)
    return text


def main() -> None:
    """Writes all that has changed, and tells its name."""
    files = {
        name: filled((ROOT / name).read_text(encoding="utf-8"), places).encode() for name, places in PLACES.items()
    }
    files |= {str(claims.PAGE.relative_to(ROOT)): claims.page().encode()}
    files |= {f"{FIGURE}.png": figure().files["png"], f"{FIGURE}.csv": figure_numbers().encode()}
    for name, data in files.items():
        path = ROOT / name
        if not path.exists() or path.read_bytes() != data:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, data)
            print(name)


if __name__ == "__main__":
    main()
