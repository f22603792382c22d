"""The README's table: the compressor beside the strongest baseline of each comparison."""

from __future__ import annotations

from functools import cache
from statistics import mean
from typing import Any

from pandas import DataFrame, Series

from studies.experiments import condensa_published, energy
from studies.experiments.store import grouped, load_records
from studies.finding import find_study, load_study
from studies.records.record import COMPRESSOR
from studies.report.frame import check_frame
from studies.report.names import method_name, task_name
from studies.report.sentences import best_search
from studies.report.tables import NOTHING, blocks_of, interval, markdown, mean_and_deviation, points, summarize

STUDIES = ("digits", "lenet5-mnist", "resnet20-cifar10")
# What the verdict on a baseline says of the compressor.
SEEN_FROM_US = {"worse": "ahead", "better": "behind"}
# (target of the compressor, what people do first) of the experiment of energies
ENERGY_PAIRS = (("energy", "magnitude"), ("energy-channels", "uniform-channels"))
CONDENSA_SETTING = "lenet5-mnist-memory"


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
    for rows in blocks_of(summarize(finished(name))):
        task, target, _ = rows.index[0]
        theirs = best_search(rows[rows["seeds"] == rows["seeds"].max()])
        if theirs is None or not theirs["verdict"]:  # nothing to compare, or no seed in common
            continue
        ours, verdict = rows.loc[(task, target, COMPRESSOR)], str(theirs["verdict"])
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
                "compressor": percent(ours),
                "strongest baseline": method_name(str(theirs.name[2])),
                "its accuracy": percent(theirs),
                "its training": f"{theirs['total_steps'] / ours['total_steps']:.1f}x",
                "compressor ahead by": " ".join(filter(None, lead)),
            }
        )
    return lines


def percent(row: Series) -> str:
    """Returns the mean test accuracy of a row and its deviation, in percent."""
    return mean_and_deviation(row["test_accuracy_mean"], row["test_accuracy_sd"])


def _against_pruning(target: str, baseline: str) -> dict[str, str]:
    groups = grouped(load_records(energy.RECORDS), ("percent", "method"))
    leads = {
        share: _mean(groups[share, target], "test_accuracy") - _mean(groups[share, baseline], "test_accuracy")
        for share in energy.PERCENTS
        if {(share, target), (share, baseline)} <= groups.keys()
    }
    share = min(leads, key=leads.__getitem__)
    ours, theirs = groups[share, target], groups[share, baseline]
    row = _of_experiment("LeNet-5 on digits", ours, theirs)
    row |= {"target": f"`{target}:{share}%`", "epochs": f"{_mean(ours, 'epochs'):.0f}"}
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
        "compressor": percent(_moments(ours)),
        "strongest baseline": "",
        "its accuracy": percent(_moments(theirs)),
        "its training": NOTHING,
        "compressor ahead by": points(lead),
    }


def _mean(rows: list[dict[str, Any]], key: str) -> float:
    return float(mean(row[key] for row in rows))


def _moments(rows: list[dict[str, Any]]) -> Series:
    accuracy = Series([row["test_accuracy"] for row in rows])
    return Series({"test_accuracy_mean": accuracy.mean(), "test_accuracy_sd": accuracy.std()})


@cache
def finished(name: str) -> DataFrame:
    """Returns the cells of a study that have been run.

    Raises:
        InvalidInputError: none has been run, or they are of different test splits.
    """
    table = load_study(name)
    check_frame(table, partial=True, mixed=True)
    return table[table["state"] == "finished"]
