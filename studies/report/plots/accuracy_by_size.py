"""The figure of the README: test accuracy against the bytes of the file, the compressor beside the searches."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from pandas import DataFrame

from studies.report.names import task_name
from studies.report.plots.style import (
    INK,
    Drawing,
    MethodStyle,
    error_axis,
    explain,
    finish,
    house_style,
    method_handles,
    method_styles,
    panels,
    plain_numbers,
)

PANEL_INCHES = 1.6
NOTE = (
    "mean over the seeds; bars: standard deviation; dotted: the uncompressed network (horizontal) and the targets "
    "(vertical)"
)


def accuracy_by_size(
    name: str, title: str, summaries: Sequence[DataFrame], budgets: Sequence[Sequence[int]]
) -> Drawing:
    """Returns test accuracy against file size, one panel for each task, a line for each method.

    Args:
        name: of the figure.
        title: what it shows.
        summaries: rows of `summarize` with file sizes as targets, one frame for each task.
        budgets: the targets in bytes, for each task.
    """
    with house_style():
        figure, axes = panels(title, [PANEL_INCHES] * len(summaries))
        methods = list(dict.fromkeys(name for rows in summaries for name in rows.index.get_level_values("method")))
        styles = method_styles(methods)
        for axis, rows, sizes in zip(axes, summaries, budgets, strict=True):
            _panel(axis, rows, styles, sizes)
        axes[-1].set_xlabel("bytes of the file")
        explain(figure, NOTE, method_handles(methods, methods))
        return finish(figure, name, title, "Of each method the networks that its study wrote.")


def _panel(axis: Axes, rows: DataFrame, styles: dict[str, MethodStyle], budgets: Sequence[int]) -> None:
    for method, points in rows.groupby("method", sort=False):
        style, drawn = styles[str(method)], points.sort_values("file_bytes_mean")
        axis.errorbar(
            drawn["file_bytes_mean"], 100 * drawn["test_accuracy_mean"], yerr=100 * drawn["test_accuracy_sd"].fillna(0),
            color=style.colour, linestyle=style.line, marker=style.marker, elinewidth=0.7,
            markersize=9 if style.marker == "*" else 4.5, markeredgecolor="white", markeredgewidth=0.4,
        )  # fmt: skip
    for size in budgets:
        axis.axvline(size, color=INK, linestyle=":", linewidth=0.6)
    reference = 100 * rows["reference_accuracy_mean"].mean()
    axis.axhline(reference, color=INK, linestyle=":", linewidth=0.8)
    best = (rows["test_accuracy_mean"] + rows["test_accuracy_sd"].fillna(0)).max()
    error_axis(axis, [100 * rows["test_accuracy_mean"].min(), min(100.0, 100 * best), reference])
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axis.margins(x=0.12)
    plain_numbers(axis, "x")
    axis.set_ylabel("test accuracy, %")
    axis.set_title(task_name(str(rows.index[0][0])), loc="left")
