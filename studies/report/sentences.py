"""What a study says in words: one sentence first, then accuracy and cost for each task and target."""

from __future__ import annotations

import math

import numpy as np
from pandas import DataFrame, Series
from scipy import stats

from studies.records.record import COMPRESSOR
from studies.report.names import block_name, method_name
from studies.report.statistics import LEVEL, MIN_SEEDS, VERDICTS
from studies.report.tables import blocks_of, has_comparison, interval, mean_and_deviation, points


def finding(summary: DataFrame) -> str:
    """Returns the study's finding in one sentence; "" where nothing is compared with the compressor."""
    compared = [rows for rows in blocks_of(summary) if (rows["verdict"] != "").any()]
    if not compared:
        return ""
    verdicts = [verdict for rows in compared for verdict in rows["verdict"] if verdict]
    counts = [f"{verdicts.count(verdict) or 'none'} {verdict}" for verdict in VERDICTS]
    counts = [text for text in counts if text.startswith("none better") or not text.startswith("none")]
    nearest = []
    for rows in compared:
        task, target, _ = rows.index[0]
        ours, theirs = rows.loc[(task, target, COMPRESSOR)], best_search(rows)
        if theirs is not None and theirs["verdict"]:
            factor = theirs["total_steps"] / ours["total_steps"]
            nearest.append(
                f"{points(theirs['difference_to_compressor'])} points at {block_name(task, target)} "
                f"({method_name(str(theirs.name[2]))}, {factor:.1f} times the steps)"
            )
    searches = f"; the best search by validation: {', '.join(nearest)}" if nearest else ""
    return f"Of {len(verdicts)} comparisons with the compressor {', '.join(counts)}{searches}."


def claims(summary: DataFrame, table: DataFrame) -> list[str]:
    """Returns two lines for each task and target with the compressor and a search: accuracy, and cost."""
    lines = []
    for rows in blocks_of(summary):
        theirs = best_search(rows)
        if not has_comparison(rows) or theirs is None or not rows.loc[(*rows.index[0][:2], COMPRESSOR), "seeds"]:
            continue
        lines.append(_accuracy_claim(rows, theirs))
        lines.append(_cost_claim(rows, table))
    return lines


def best_search(rows: DataFrame) -> Series | None:
    """Returns the search of lowest mean validation loss, or highest accuracy where there are no losses.

    It is chosen by its final networks; nothing is chosen on the test split.
    """
    searches = rows[(rows["search_multiple"] > 0) & (rows["seeds"] > 0)]
    if searches.empty:
        return None
    losses = searches["validation_loss_mean"]
    best = losses.idxmin() if losses.notna().all() else searches["validation_accuracy_mean"].idxmax()
    found: Series = searches.loc[best]
    return found


def _accuracy(row: Series) -> str:
    return mean_and_deviation(row["test_accuracy_mean"], row["test_accuracy_sd"])


def _accuracy_claim(rows: DataFrame, theirs: Series) -> str:
    """Returns how the test accuracies of the compressor and of the best search differ at the same target."""
    task, target, method = theirs.name
    ours = rows.loc[(task, target, COMPRESSOR)]
    told = "no seed in common"
    if theirs["verdict"]:
        reach = interval(theirs["interval_low"], theirs["interval_high"])
        told = f"difference {points(theirs['difference_to_compressor'])} points {reach}: {theirs['verdict']}"
    return (
        f"{block_name(task, target)}, test accuracy: compressor {_accuracy(ours)} % in {ours['file_bytes_mean']:,.0f} "
        f"bytes; the best search by validation, {method_name(method)}, {_accuracy(theirs)} % in "
        f"{theirs['file_bytes_mean']:,.0f} bytes, with {theirs['search_multiple'] + 1:.1f} times the gradient steps, "
        f"final training included ({told})."
    )


def _cost_claim(rows: DataFrame, table: DataFrame) -> str:
    """Returns by what factor the cheapest search takes more gradient steps, and seconds, to the same validation.

    For each seed: what the search takes until a trial, or after it the final training, is as good as the compressor's
    final network of that seed, over all that the compressor takes. The factor is the geometric mean over the seeds,
    with a t interval of its logarithm. The cheapest search is that which reaches it in most seeds, of these the one of
    least factor.
    """
    task, target, _ = rows.index[0]
    cells = table[(table["task"] == task) & (table["target"] == target) & (table["state"] == "finished")]
    ours = cells[cells["method"] == COMPRESSOR].set_index("seed")
    found: dict[str, DataFrame] = {}
    for method, mine in cells[cells["search_gradient_steps"] > 0].groupby("method", sort=False):
        both = mine.set_index("seed")
        both = both[both.index.isin(ours.index)]
        if len(both):
            found[str(method)] = DataFrame([_factors(both.loc[seed], ours.loc[seed]) for seed in both.index])
    by_loss = bool(found) and all(each["by_loss"].all() for each in found.values())
    what = f"{block_name(task, target)}, cost to the compressor's validation {'loss' if by_loss else 'accuracy'}"
    if not found:
        return f"{what}: no search has a seed in common with the compressor."
    name = min(found, key=lambda m: (-np.isfinite(found[m]["steps"]).sum(), np.log(found[m]["steps"]).mean()))
    factors, spent = found[name], [each["spent"].mean() for each in found.values()]
    reached = int(np.isfinite(factors["steps"]).sum())
    seeds = f"{len(factors)} seed{'s' * (len(factors) != 1)}"
    if reached == len(factors):
        seconds = f", {_factor(factors['seconds'])} the device seconds" if factors["seconds"].notna().all() else ""
        return (
            f"{what}: the cheapest search, {method_name(name)}, takes {_factor(factors['steps'])} the compressor's "
            f"gradient steps{seconds} (geometric mean of {seeds})."
        )
    within = f"{max(spent):.1f}" if max(spent) - min(spent) < 0.05 else f"{min(spent):.1f} to {max(spent):.1f}"
    some = f"; {method_name(name)} reaches it in {reached} of {seeds}" if reached else ""
    return f"{what}: no search reaches it in all seeds within {within} times the compressor's gradient steps{some}."


def _factor(values: Series) -> str:
    """Returns the geometric mean as text, with its interval where there are enough seeds."""
    logs = np.log(values.to_numpy(float))
    text = f"{math.exp(logs.mean()):.1f} times"
    if len(logs) < MIN_SEEDS or logs.std() == 0:
        return text
    low, high = stats.t.interval(1 - LEVEL, len(logs) - 1, logs.mean(), stats.sem(logs))
    return f"{text} [{math.exp(low):.1f}, {math.exp(high):.1f}]"


def _factors(search: Series, other: Series) -> dict[str, float | bool]:
    steps, seconds, by_loss = cost_to_reach(search, other)
    return {
        "steps": steps / other["total_steps"],
        "seconds": seconds / other["device_seconds"],
        "spent": search["total_steps"] / other["total_steps"],
        "by_loss": by_loss,
    }


def cost_to_reach(search: Series, other: Series) -> tuple[float, float, bool]:
    """Returns (gradient steps, device seconds, by loss) after which a search is as good as the other's final network.

    As good is by validation loss where both records have it, else by validation accuracy. Steps are infinite where it
    never is; seconds are NaN where the record does not have them for each trial.
    """
    goal = other["validation_loss"]
    losses = [trial.get("loss") for trial in search["search"] or []]
    if not math.isnan(goal) and not math.isnan(search["validation_loss"]) and any(v is not None for v in losses):
        steps = seconds = 0.0
        for trial, loss in zip(search["search"], losses, strict=True):
            steps, seconds = steps + trial["gradient_steps"], seconds + trial["device_seconds"]
            if trial["state"] == "complete" and loss is not None and loss <= goal:
                return steps, seconds, True
        if search["validation_loss"] <= goal:
            return search["total_steps"], search["device_seconds"], True
        return math.inf, math.inf, True
    for steps, accuracy in search["anytime"] or []:
        if accuracy >= other["validation_accuracy"]:
            return steps, math.nan, False
    if search["validation_accuracy"] >= other["validation_accuracy"]:
        return search["total_steps"], search["device_seconds"], False
    return math.inf, math.inf, False
