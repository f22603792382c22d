"""The figure of what finding a network costs: validation accuracy against gradient steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import seaborn
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator
from numpy.typing import NDArray
from pandas import DataFrame

from studies.report.frame import methods_of
from studies.report.names import method_name, target_name, task_name
from studies.report.plots.style import (
    Drawing,
    MethodStyle,
    error_axis,
    explain,
    finish,
    house_style,
    method_handles,
    method_styles,
    panels,
    tip,
)

# Points of a searcher's curve.
GRID_POINTS = 80
# A curve is shown from this much below the worst final accuracy, as a part of the range of these.
BELOW = 0.4
# Below so many decades an axis of costs has ticks at 1, 2 and 5.
CLOSE_TICKS_DECADES = 2.5
# Final networks whose costs are as like as this, in decades, are drawn side by side, this part of the axis apart.
ALIKE_DECADES, APART = 0.05, 0.018


def cost(name: str, title: str, blocks: Sequence[DataFrame]) -> Drawing:
    """Returns accuracy against steps, one panel for each task and target: steps of searches, points of final networks.

    Args:
        name: of the figure.
        title: of what is compared.
        blocks: finished cells of each task and target in which something was searched.
    """
    with house_style():
        figure, axes = panels(task_name(blocks[0]["task"].iloc[0]), [1.7] * len(blocks), share_x="all", share_y="all")
        methods = list(dict.fromkeys(method for block in blocks for method in methods_of(block)))
        styles = method_styles(methods)
        for axis, block in zip(axes, blocks, strict=True):
            _draw(axis, block, styles)
            axis.set_title(target_name(block["target"].iloc[0]), loc="left")
            axis.set_ylabel("validation accuracy, %")
        finals = 100 * np.array([value for block in blocks for value in block["validation_accuracy"]])
        means = [100 * b.groupby("method")["validation_accuracy"].mean().min() for b in blocks]
        axes[0].set_ylim(bottom=max(0.0, min(means) - BELOW * max(finals.max() - min(means), 0.5)))
        error_axis(axes[0], finals)
        axes[-1].set_xscale("log")
        near = max(_decades(block) for block in blocks) < CLOSE_TICKS_DECADES
        axes[-1].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if near else (1,)))
        axes[-1].xaxis.set_minor_locator(NullLocator())
        axes[-1].xaxis.set_major_formatter(EngFormatter(sep=""))
        axes[-1].set_xlabel("gradient steps so far")
        note = (
            "steps: best trial of a search so far, mean over the seeds; points: the network that is written, its final "
            "training counted; bars: smallest to largest of the seeds; those that cost the same stand side by side"
        )
        searched = {str(method) for block in blocks for method in block.loc[block["anytime"].map(bool), "method"]}
        explain(figure, note, method_handles(methods, searched))
        return finish(figure, name, title, "Curves that begin lower than shown are cut.")


def _draw(axis: Axes, block: DataFrame, styles: dict[str, MethodStyle]) -> None:
    axis.set_xscale("log")
    groups = {str(method): cells for method, cells in block.groupby("method", sort=False)}
    costs = [float(np.log10(cells["total_steps"].mean())) for cells in groups.values()]
    for (method, cells), shift in zip(groups.items(), side_by_side(costs, _decades(block)), strict=True):
        style = styles[method]
        curve = _anytime(cells)
        if curve is not None:
            seaborn.lineplot(x=curve[0], y=100 * curve[1], ax=axis, color=style.colour, linestyle=style.line,
                             drawstyle="steps-post", estimator=None, errorbar=None, legend=False)  # fmt: skip
        accuracy = 100 * cells["validation_accuracy"].to_numpy(float)
        where = cells["total_steps"].mean() * 10**shift
        axis.plot([where, where], [accuracy.min(), accuracy.max()], color=style.colour, linewidth=0.8, alpha=0.6)
        (point,) = axis.plot(
            [where], [accuracy.mean()], style.marker, color=style.colour, markersize=9 if style.marker == "*" else 4.5,
            markeredgecolor="white", markeredgewidth=0.4,
        )  # fmt: skip
        tip(point, f"{method_name(method)}: {accuracy.mean():.2f} % after {cells['total_steps'].mean():,.0f} steps")
    axis.set_xlabel("")
    axis.set_ylabel("")


def _decades(block: DataFrame) -> float:
    """Returns the decades from the first trial to the dearest network."""
    first = [int(points[0][0]) for points in block["anytime"] if points]
    steps = block["total_steps"].tolist()
    return float(np.log10(max(steps) / max(1, min(steps + first))))


def side_by_side(costs: Sequence[float], decades: float) -> list[float]:
    """Returns by how many decades each cost moves, so that equal ones do not hide each other; the axis has so many."""
    shifts = []
    for index, one in enumerate(costs):
        alike = [i for i, other in enumerate(costs) if abs(other - one) < ALIKE_DECADES]
        shifts.append(APART * decades * ((len(alike) - 1) / 2 - alike.index(index)))
    return shifts


def _anytime(cells: DataFrame) -> NDArray[np.float64] | None:
    """Returns (steps, mean of the best accuracy so far), [2, points], from where all seeds have a trial."""
    curves = [np.array(points) for points in cells["anytime"] if points]
    if not curves:
        return None
    first, last = max(curve[0, 0] for curve in curves), max(curve[-1, 0] for curve in curves)
    steps = np.unique(np.geomspace(max(first, 1), max(last, first + 1), GRID_POINTS).round())
    best = [curve[np.searchsorted(curve[:, 0], steps, side="right") - 1, 1] for curve in curves]
    return np.array([steps, np.mean(best, axis=0)])
