"""The tables and the figure of the README and of docs, from the committed records.

`python -m studies.report.readme` writes them into their places: what stands between `<!-- NAME -->` and
`<!-- /NAME -->`, and one PNG. Cells that nobody has run yet are left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

import pandas as pd
from pandas import DataFrame, Series

from autocompress.codec.atomic_write import write_whole
from autocompress.targets import FileSize, parse_target
from studies.experiments import claims, condensa_published, energy
from studies.experiments.store import grouped, load_records, smallest_to_largest
from studies.finding import find_study, load_study
from studies.records.record import COMPRESSOR
from studies.report.frame import check_frame, mixtures
from studies.report.names import method_name, task_name
from studies.report.plots.accuracy_by_size import accuracy_by_size
from studies.report.plots.style import Drawing
from studies.report.sentences import best_search
from studies.report.statistics import FEWEST_SEEDS
from studies.report.tables import (
    NOTHING,
    blocks_of,
    comparison_table,
    file_range,
    interval,
    markdown,
    mean_and_deviation,
    points,
    summarize,
    systems_table,
)
from studies.specs.lenet5_mnist import SEARCHES

ROOT = Path(__file__).parents[2]
STUDIES = ("digits", "lenet5-mnist", "resnet20-cifar10")
COLUMNS = ("method", "seeds", "test accuracy, %", "to compressor [95 % interval]", "verdict", "to reference",
           "file bytes", "of target, %", "search steps")  # fmt: skip
# What the verdict on a baseline says of the compressor.
SEEN_FROM_US = {"worse": "ahead", "better": "behind"}
# (target of the compressor, what people do first) of the experiment of energies
ENERGY_PAIRS = (("energy", "magnitude"), ("energy-channels", "uniform-channels"))
CONDENSA_SETTING = "lenet5-mnist-memory"
LARGEST_TASK = "resnet20-cifar10"


def headline() -> str:
    """Returns the README's table in Markdown: the compressor beside the strongest baseline, a row for each question.

    The baseline is chosen by validation; of the energies the one at which the compressor is farthest behind is shown.
    """
    lines = [line for name in STUDIES for line in _against_searches(name)]
    lines += [_against_pruning(*pair) for pair in ENERGY_PAIRS]
    lines += _against_condensa()
    return markdown(DataFrame(lines), {"network, data", "target", "strongest baseline"})


def _against_searches(name: str) -> list[dict[str, str]]:
    lines, (spec, _) = [], find_study(name)
    for rows in blocks_of(summarize(_finished(name))):
        task, target, _ = rows.index[0]
        ours, theirs = rows.loc[(task, target, COMPRESSOR)], best_search(rows[rows["seeds"] == rows["seeds"].max()])
        if theirs is None:
            continue
        verdict = str(theirs["verdict"])
        lead = [
            points(-theirs["difference_to_compressor"]),
            interval(-theirs["interval_high"], -theirs["interval_low"]),
            SEEN_FROM_US.get(verdict, verdict),
        ]
        lines.append(
            {
                "network, data": task_name(str(task)),
                "target": f"`{target}`",
                "epochs": str(spec.final_epochs),
                "seeds": f"{ours['seeds']:.0f}",
                "reference": f"{100 * ours['reference_accuracy_mean']:.2f}",
                "compressor": _percent(ours),
                "strongest baseline": method_name(str(theirs.name[2])),
                "its accuracy": _percent(theirs),
                "its training": f"{theirs['total_steps'] / ours['total_steps']:.1f}x",
                "compressor ahead by": " ".join(filter(None, lead)),
            }
        )
    return lines


def _percent(row: Series) -> str:
    return mean_and_deviation(row["test_accuracy_mean"], row["test_accuracy_sd"])


def _against_pruning(target: str, baseline: str) -> dict[str, str]:
    groups = grouped(load_records(energy.RECORDS), ("percent", "method"))
    leads = {
        percent: _mean(groups[percent, target], "test_accuracy") - _mean(groups[percent, baseline], "test_accuracy")
        for percent in energy.PERCENTS
    }
    percent = min(leads, key=leads.__getitem__)
    ours, theirs = groups[percent, target], groups[percent, baseline]
    row = _of_experiment("LeNet-5 on digits", ours, theirs)
    row |= {"target": f"`{target}:{percent}%`", "epochs": smallest_to_largest([each["epochs"] for each in ours])}
    return row | {"strongest baseline": baseline, "its training": "1.0x"}


def _against_condensa() -> list[dict[str, str]]:
    groups = grouped(load_records(condensa_published.RECORDS), (*condensa_published.RUN, "method"))
    lines = []
    for (case, *run, method), theirs in groups.items():
        ours = groups.get((case, *run, "compressor, file"))
        if case == CONDENSA_SETTING and method == "condensa" and ours:
            examples = [_mean(rows, "gradient_steps") * _mean(rows, "batch_size") for rows in (theirs, ours)]
            row = _of_experiment("LeNet-5 on MNIST", ours, theirs)
            row |= {"target": f"`{ours[0]['target']}`", "strongest baseline": "Condensa, as published"}
            lines.append(row | {"its training": f"{examples[0] / examples[1]:.1f}x"})
    return lines


def _of_experiment(name: str, ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> dict[str, str]:
    lead = _mean(ours, "test_accuracy") - _mean(theirs, "test_accuracy")
    return {
        "network, data": name,
        "target": "",
        "epochs": NOTHING,
        "seeds": str(len(ours)),
        "reference": f"{100 * _mean(ours, 'reference_accuracy'):.2f}",
        "compressor": _percent(_moments(ours)),
        "strongest baseline": "",
        "its accuracy": _percent(_moments(theirs)),
        "its training": NOTHING,
        "compressor ahead by": points(lead),
    }


def _mean(rows: list[dict[str, Any]], key: str) -> float:
    return float(mean(row[key] for row in rows))


def _moments(rows: list[dict[str, Any]]) -> Series:
    accuracy = Series([row["test_accuracy"] for row in rows])
    return Series({"test_accuracy_mean": accuracy.mean(), "test_accuracy_sd": accuracy.std()})


def alone() -> str:
    """Returns two sentences on the compressor alone: the longest run of the largest network, and the worst of all."""
    rows = _sizes()
    longest = rows.loc[rows.loc[rows["task"] == LARGEST_TASK, "epochs"].idxmax()]
    worst = rows.loc[rows["difference_to_reference"].idxmin()]
    return f"The compressor alone, trained for longer: {_sentence(longest)} The worst of these runs: {_sentence(worst)}"


def _sentence(row: Series) -> str:
    seeds = f"{row['seeds']:.0f} seed" + ("s" if row["seeds"] > 1 else "")
    return (
        f"{task_name(row['task'])} at `{row['target']}`, {row['epochs']} epochs, {seeds}: {_percent(row)} % where the "
        f"uncompressed network has {100 * row['reference_accuracy_mean']:.2f} %."
    )


def _sizes() -> DataFrame:
    rows = summarize(_finished("sizes")).reset_index()
    rows = rows[rows["seeds"] > 0]
    return rows.assign(epochs=rows["method"].str.extract(r"(\d+) epochs", expand=False).astype(int))


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
        table = _finished(name)
        rows = summarize(table[table["method"].isin((COMPRESSOR, *SEARCHES))])
        rows = rows[rows["seeds"] >= FEWEST_SEEDS]
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
        table = _finished(name)
        for rows in blocks_of(summarize(table)):
            shown = comparison_table(rows[rows.index.isin((COMPRESSOR, *SEARCHES), level="method")], table)
            text = shown.text.reindex(columns=list(COLUMNS), fill_value=NOTHING)
            text.insert(0, "network, data, target", shown.title)
            parts.append(text)
    return markdown(pd.concat(parts), {"network, data, target", "method", "verdict"})


def mixed() -> str:
    """Returns what the cells of the studies do not have in common, as a list."""
    lines = [f"- `{name}`: {line}" for name in STUDIES for line in mixtures(_finished(name))]
    return "\n".join(lines) or "All cells of a study are of one revision, and of the same references."


def sizes() -> str:
    """Returns the table of the compressor alone in Markdown.

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
        for row in _sizes().itertuples()
    ]
    return markdown(DataFrame(lines), {"network, data", "target"})


def family() -> str:
    """Returns the table of every kind of target on one network in Markdown.

    Raises:
        InvalidInputError: no cell is finished.
    """
    table = systems_table(summarize(_finished("family")), "lenet5-digits")
    return markdown(table.text, table.words)


@cache
def _finished(name: str) -> DataFrame:
    table = load_study(name)
    check_frame(table, partial=True, mixed=True)
    return table[table["state"] == "finished"]


# file -> name of a place in it -> what stands there
PLACES: Mapping[str, Mapping[str, Callable[[], str]]] = {
    "README.md": {"results": headline, "alone": alone},
    "docs/results.md": {"sizes": sizes, "studies": summary, "mixed": mixed, "family": family},
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
