"""Figures of studies that vary the compressor itself: one constant at a time, and how long it trains."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import seaborn
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator
from pandas import DataFrame, Series

from autocompress.solver.constants import DEFAULTS
from studies.records.record import COMPRESSOR
from studies.report.names import block_name, method_name, target_name, task_name
from studies.report.plots.style import COLOURS, INK, Drawing, error_axis, explain, finish, house_style, log_axis, panels

# How a variant is named that has one constant at a value of its own, and one that trains for so long.
VARIED = re.compile(rf"{COMPRESSOR} (.+)=([0-9.]+)")
LONG = r"^(?P<part>.+), (?P<epochs>\d+) epochs$"
COLUMNS = 3
MIN_LENGTHS = 3


def varied_constants(block: DataFrame) -> dict[str, list[tuple[float, str]]]:
    """Returns for each constant that a block varies (value, method), ascending, the default's value among them."""
    found: dict[str, list[tuple[float, str]]] = {}
    for method in block["method"].unique():
        if match := VARIED.fullmatch(method):
            found.setdefault(match[1], []).append((float(match[2]), method))
    for values in found.values():
        changed = block[block["method"] == values[0][1]]["cell"].iloc[0].get("constants", {})
        for field in changed:
            values.append((float(getattr(DEFAULTS, field)), COMPRESSOR))
    return {name: sorted(values) for name, values in found.items()}


def sensitivity(name: str, block: DataFrame) -> Drawing:
    """Returns test accuracy against each constant, one panel each, the default marked; of one task and target."""
    what = block_name(block["task"].iloc[0], block["target"].iloc[0])
    constants = varied_constants(block)
    percent = 100 * block["test_accuracy"].astype(float)
    by_method = percent.groupby(block["method"])
    mean, spread = by_method.mean(), by_method.std().fillna(0.0)
    with house_style():
        columns = min(COLUMNS, len(constants))
        figure, axes = panels(what, [1.0] * math.ceil(len(constants) / columns), columns, share_y="all")
        for axis in axes[len(constants) :]:
            axis.remove()
        for axis, (constant, values) in zip(axes, constants.items(), strict=False):
            if COMPRESSOR in mean:
                low, high = (mean[COMPRESSOR] + sign * spread[COMPRESSOR] for sign in (-1, 1))
                axis.axhspan(low, high, color=INK, alpha=0.1, linewidth=0)
            methods = [method for _, method in values if method in mean]
            places = list(range(len(methods)))  # values at equal distances: some are close to each other
            axis.errorbar(places, mean[methods], yerr=spread[methods], fmt="o-", color=COLOURS[0], ms=3, elinewidth=0.8)
            for place, method in enumerate(methods):
                if method == COMPRESSOR:
                    axis.plot([place], [mean[method]], "*", color=COLOURS[1], markersize=9, markeredgecolor="white")
            axis.set_xticks(places, [f"{value:g}" for value, method in values if method in mean], fontsize=6)
            axis.set_xlim(-0.5, len(places) - 0.5)
            axis.set_title(constant, fontsize=7)
        error_axis(axes[0], percent)
        figure.supylabel("test accuracy, %", fontsize=7, color=INK)
        handles = [
            Line2D([], [], color=COLOURS[0], marker="o", ms=3, label="one constant changed"),
            Line2D([], [], color=COLOURS[1], marker="*", ls="none", ms=7, label="default"),
        ]
        explain(figure, "mean over the seeds; bars and band (of the default): standard deviation", handles)
        return finish(figure, name, f"{what}: the compressor's constants", "One constant at another value at a time.")


def has_lengths(block: DataFrame) -> bool:
    """Tells whether a block's methods differ in how long they train."""
    return bool(block["method"].str.extract(LONG)["epochs"].nunique() >= MIN_LENGTHS)


def lengths(name: str, title: str, blocks: Sequence[DataFrame]) -> Drawing:
    """Returns test accuracy against epochs, one panel for each task and target, a line for each variant."""
    with house_style():
        figure, axes = panels(task_name(blocks[0]["task"].iloc[0]), [1.6] * len(blocks), share_x="all")
        parts: Mapping[str, str] = {}
        for axis, block in zip(axes, blocks, strict=True):
            named = block["method"].str.extract(LONG).assign(accuracy=100 * block["test_accuracy"].astype(float))
            rows = named.dropna(subset=["part"]).astype({"epochs": float})
            parts = dict(zip(rows["part"].unique(), COLOURS, strict=False))
            seaborn.lineplot(
                rows, x="epochs", y="accuracy", hue="part", style="part", errorbar="sd", err_style="bars", markers=True,
                dashes=False, palette=parts, ax=axis, legend=False, err_kws={"elinewidth": 0.8}, markersize=5,
            )  # fmt: skip
            at_once = named[named["part"].isna()]
            if len(at_once):
                axis.axhline(at_once["accuracy"].mean(), color=INK, linestyle=":", linewidth=0.8)
            axis.set_xscale("log")
            epochs = sorted(rows["epochs"].unique())
            axis.set_xticks(epochs, [f"{each:g}" for each in epochs])
            axis.xaxis.set_minor_locator(NullLocator())
            error_axis(axis, rows["accuracy"])
            axis.set(title="", xlabel="epochs", ylabel="test accuracy, %")
            axis.set_title(target_name(block["target"].iloc[0]), loc="left")
        handles = [Line2D([], [], color=c, marker="o", ms=3, label=part) for part, c in parts.items()]
        explain(figure, "mean over the seeds; bars: standard deviation; dotted: without training, where shown", handles)
        return finish(figure, name, title, "Variants of the method by the length of training.")


def systems(name: str, title: str, summary: Series | DataFrame) -> Drawing:
    """Returns test accuracy against file size of all methods and targets of one task."""
    rows = summary.reset_index()
    with house_style():
        figure, (axis,) = panels(task_name(rows["task"].iloc[0]), [2.2])
        keys = list(dict.fromkeys(rows["target"]))
        colours = dict(zip(keys, (COLOURS * 3)[: len(keys)], strict=True))
        markers = dict(zip(dict.fromkeys(rows["method"]), ("o", "s", "^", "D", "P", "X", "v", "h"), strict=False))
        for _, row in rows[rows["seeds"] > 0].iterrows():
            where, accuracy = row["file_bytes_mean"], 100 * row["test_accuracy_mean"]
            axis.errorbar(
                [where], [accuracy], yerr=[100 * row["test_accuracy_sd"]], fmt=markers.get(row["method"], "o"),
                color=colours[row["target"]], markersize=5, elinewidth=0.8, markeredgecolor="white",
            )  # fmt: skip
        log_axis(axis, "x", rows["file_bytes_mean"].dropna())
        axis.set(xlabel="file, bytes", ylabel="test accuracy, %")
        handles = [
            Line2D([], [], color=c, marker="o", ls="none", ms=4, label=target_name(t)) for t, c in colours.items()
        ]
        handles += [
            Line2D([], [], color=INK, marker=m, ls="none", ms=4, label=method_name(n)) for n, m in markers.items()
        ]
        explain(figure, "mean over the seeds; bars: standard deviation; colour: what was asked, mark: method", handles)
        return finish(figure, name, title, "File size on a logarithmic axis.")
