"""The figure of the finding: how much each method differs from the compressor, sorted, with intervals."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator
from pandas import DataFrame

from studies.records.record import COMPRESSOR
from studies.report.names import method_name, target_name, task_name
from studies.report.plots.style import INK, Drawing, explain, finish, house_style, panels, plain_numbers, tip
from studies.report.statistics import EQUIVALENT_POINTS, VERDICTS
from studies.report.tables import with_interval

VERDICT_STYLES = {
    "better": ("#d55e00", "^"),
    "worse": ("#0072b2", "v"),
    "equivalent": ("#009e73", "o"),
    "undecided": ("#7f7f7f", "D"),
}
# Where the farthest interval reaches beyond so many points, the axis is logarithmic beyond one.
LINEAR_POINTS = 8.0
TICKS = (-50, -20, -10, -5, -2, -1, 0, 1, 2, 5, 10, 20, 50)


def differences(name: str, title: str, blocks: Sequence[DataFrame]) -> Drawing:
    """Returns the sorted differences of each task and target, one panel each.

    Args:
        name: of the figure.
        title: of what is compared.
        blocks: rows of `summarize` of each task and target that has a comparison.
    """
    with house_style():
        shown = [rows[rows["verdict"] != ""].sort_values("difference_to_compressor") for rows in blocks]
        heights = [0.3 + 0.15 * len(rows) for rows in shown]
        figure, axes = panels(task_name(str(blocks[0].index[0][0])), heights, share_x="all")
        for axis, rows, block in zip(axes, shown, blocks, strict=True):
            task, target, _ = rows.index[0]
            ours = 100 * block.loc[(task, target, COMPRESSOR), "test_accuracy_mean"]
            axis.set_title(f"{target_name(target)}: compressor {ours:.2f} %", loc="left")
            _dots(axis, rows)
        _scale(axes[-1], 100 * min(rows["interval_low"].min() for rows in shown),
               100 * max(rows["interval_high"].max() for rows in shown))  # fmt: skip
        axes[-1].set_xlabel("test accuracy minus the compressor's, points")
        seen = [verdict for verdict in VERDICTS if any((rows["verdict"] == verdict).any() for rows in shown)]
        handles = [
            Line2D([], [], color=VERDICT_STYLES[v][0], marker=VERDICT_STYLES[v][1], ls="none", ms=4, label=v)
            for v in seen
        ]
        note = (
            "dots: mean over the seeds; bars: 95 % interval of a paired t, seeds and test examples crossed; "
            f"grey band: ±{EQUIVALENT_POINTS} points; verdicts corrected by Holm's method"
        )
        explain(figure, note, handles)
        return finish(figure, name, title, "Each method beside the compressor, the best on top.")


def _dots(axis: Axes, rows: DataFrame) -> None:
    axis.axvspan(-EQUIVALENT_POINTS, EQUIVALENT_POINTS, color=INK, alpha=0.1, linewidth=0)
    axis.axvline(0, color=INK, linewidth=0.8)
    for place, (key, row) in enumerate(rows.iterrows()):
        colour, marker = VERDICT_STYLES[row["verdict"]]
        axis.plot([100 * row["interval_low"], 100 * row["interval_high"]], [place, place], color=colour, linewidth=1.2)
        (dot,) = axis.plot(
            [100 * row["difference_to_compressor"]], [place], marker, color=colour, markersize=4.5,
            markeredgecolor="white", markeredgewidth=0.4,
        )  # fmt: skip
        tip(dot, f"{method_name(str(key[2]))}: {with_interval(row)} points, {row['verdict']}")
    axis.set_yticks(range(len(rows)), [method_name(str(key[2])) for key in rows.index])
    axis.set_ylim(-0.6, len(rows) - 0.4)
    axis.grid(False, axis="y")


def _scale(axis: Axes, low: float, high: float) -> None:
    low, high = min(low, -1.0), max(high, 1.0)
    if max(-low, high) > LINEAR_POINTS:
        axis.set_xscale("symlog", linthresh=1.0, linscale=0.8)
        axis.xaxis.set_major_locator(FixedLocator([t for t in TICKS if low <= t <= high]))
        axis.set_xlim(1.3 * low, 1.3 * high)
    plain_numbers(axis, "x")
