"""Figures of accuracy: against the size of the file, and against what finding it cost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullLocator
from numpy.typing import NDArray

from studies.blocks import Block, MethodCells
from studies.plots.error_axis import error_axis
from studies.plots.style import Drawing, MethodStyle, finish, house_style, method_legend, panels
from studies.record import Record

# Points of a searcher's curve.
GRID_POINTS = 120
# A curve is shown from this much below the worst final accuracy, as a part of the range of these.
BELOW = 0.4
# Below so many decades an axis of costs has ticks at 1, 2 and 5.
CLOSE_TICKS_DECADES = 2.5
# Final networks whose costs are as like as this, in decades, are drawn side by side, this part of the axis apart.
ALIKE_DECADES, APART = 0.05, 0.012


def accuracy_and_size(name: str, task: str, blocks: Sequence[Block], styles: dict[str, MethodStyle]) -> Drawing:
    """Returns test accuracy against file size: all targets with the front of the means, then each target closer up."""
    with house_style():
        overview = len(blocks) > 1
        figure, ((*axes,),) = panels(1, len(blocks) + overview, 4.0)
        if overview:
            _front(axes[0], blocks, styles)
            axes[0].set_title(f"{task}, all targets")
        for axis, block in zip(axes[overview:], blocks, strict=True):
            for cells in _drawn(block):
                _point(axis, *_size_and_accuracy(cells), styles[cells.method])
            axis.set_title(f"{task}, {block.target}")
            axis.locator_params(axis="x", nbins=5 if len(axes) < 3 else 7 - len(axes))
        for axis in axes:
            axis.set_xlabel("file size, bytes")
            axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
            error_axis(
                axis, [100 * (r.test_accuracy or 0) for b in blocks for c in _drawn(b) for r in c.records.values()]
            )
        axes[0].set_ylabel("test accuracy, %")
        method_legend(figure, _used(blocks, styles))
        return finish(
            figure,
            name,
            f"{task}: accuracy against file size",
            "Mean over the seeds; bars go from the smallest to the largest. Each panel of one target shows "
            "its own range, logarithmic in the errors where these differ by factors. Grey line: what no method's mean "
            "beats in both.",
        )


def _size_and_accuracy(cells: MethodCells) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    sizes = np.array([record.file_bytes or 0 for record in cells.records.values()], float)
    return sizes, 100 * np.array([record.test_accuracy or 0 for record in cells.records.values()], float)


def _front(axis: Axes, blocks: Sequence[Block], styles: dict[str, MethodStyle]) -> None:
    """Draws the means of all targets, and the steps that none of them beats in size and accuracy."""
    means = []
    for block in blocks:
        for cells in _drawn(block):
            sizes, accuracies = _size_and_accuracy(cells)
            _point(axis, sizes, accuracies, styles[cells.method], size=0.7)
            means.append((sizes.mean(), accuracies.mean()))
    front: list[tuple[float, float]] = []
    for size, accuracy in sorted(means):
        if not front or accuracy > front[-1][1]:
            front.append((size, accuracy))
    front.append((max(size for size, _ in means), front[-1][1]))
    axis.step(*zip(*front, strict=True), where="post", color="#999999", linewidth=1.0, zorder=1)
    axis.locator_params(axis="x", nbins=5)


def accuracy_and_cost(name: str, task: str, blocks: Sequence[Block], styles: dict[str, MethodStyle]) -> Drawing:
    """Returns validation accuracy against gradient steps, one panel a target: curves of searches, final points."""
    with house_style():
        figure, ((*axes,),) = panels(1, len(blocks), 4.0, share_y="row")
        finals: list[float] = []
        seen: list[NDArray[np.float64]] = []
        for axis, block in zip(axes, blocks, strict=True):
            axis.set_xscale("log")
            drawn = _drawn(block)
            costs = [_cost_and_accuracy(cells) for cells in drawn]
            shifts = _side_by_side([float(np.log10(steps.mean())) for steps, _ in costs], _decades(block))
            for cells, (steps, accuracies), shift in zip(drawn, costs, shifts, strict=True):
                _anytime(axis, list(cells.records.values()), styles[cells.method])
                _point(axis, steps * 10**shift, accuracies, styles[cells.method])
                finals.append(float(accuracies.mean()))
                seen.append(accuracies)
            axis.set_title(f"{task}, {block.target}")
            axis.set_xlabel("gradient steps so far")
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if _decades(block) < CLOSE_TICKS_DECADES else (1,)))
            axis.xaxis.set_minor_locator(NullLocator())
            axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        span = max(max(finals) - min(finals), 0.5)
        axes[0].set_ylim(bottom=max(0.0, min(finals) - BELOW * span))
        error_axis(axes[0], [value for values in seen for value in values])
        axes[0].set_ylabel("validation accuracy, %")
        method_legend(figure, _used(blocks, styles), lines=True)
        return finish(
            figure,
            name,
            f"{task}: accuracy against search cost",
            "Lines: best validation accuracy of a search's trials so far, mean and standard deviation over the seeds. "
            "Points: the network that is written, search and final training counted, bars from the smallest to the "
            "largest; where these cost the same, they "
            "are drawn side by side. Curves that begin lower are cut. The vertical axis is logarithmic in the errors "
            "where these differ by factors.",
        )


def _cost_and_accuracy(cells: MethodCells) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    records = cells.records.values()
    steps = np.array([record.search_gradient_steps + record.gradient_steps for record in records], float)
    return steps, 100 * np.array([record.validation_accuracy or 0 for record in records], float)


def _decades(block: Block) -> float:
    """Returns the decades from the first trial to the dearest network."""
    steps = [record.search_gradient_steps + record.gradient_steps for record in block.records]
    first = [int(record.anytime[0][0]) for record in block.records if record.anytime]
    return float(np.log10(max(steps) / max(1, min(steps + first))))


def _side_by_side(costs: Sequence[float], decades: float) -> list[float]:
    """Returns by how many decades each cost moves, so that equal ones do not hide each other; the axis has so many."""
    shifts = []
    for index, cost in enumerate(costs):
        alike = [i for i, other in enumerate(costs) if abs(other - cost) < ALIKE_DECADES]
        shifts.append(APART * decades * ((len(alike) - 1) / 2 - alike.index(index)))
    return shifts


def _drawn(block: Block) -> list[MethodCells]:
    """Returns the methods with a finished cell, the compressor last, so that it lies on top."""
    return [cells for cells in reversed(block.methods) if cells.records]


def _used(blocks: Sequence[Block], styles: dict[str, MethodStyle]) -> dict[str, MethodStyle]:
    names = {cells.method for block in blocks for cells in _drawn(block)}
    return {method: style for method, style in styles.items() if method in names}


def _point(axis: Axes, x: NDArray[np.float64], y: NDArray[np.float64], style: MethodStyle, size: float = 1) -> None:
    # From the smallest to the largest: deviations would reach beyond the target and beyond 100 %.
    # Of equal values the mean can lie a rounding error outside.
    ranges = [np.maximum([[v.mean() - v.min()], [v.max() - v.mean()]], 0.0) for v in (x, y)]
    axis.errorbar(
        x.mean(),
        y.mean(),
        xerr=ranges[0] if ranges[0].any() else None,
        yerr=ranges[1] if ranges[1].any() else None,
        fmt=style.marker,
        color=style.colour,
        ecolor=to_rgba(style.colour, 0.55),
        markersize=size * (13 if style.marker == "*" else 7),
        markeredgecolor="white",
        markeredgewidth=0.5,
        elinewidth=1.0,
    )


def _anytime(axis: Axes, records: Sequence[Record], style: MethodStyle) -> None:
    """Draws the mean and deviation of the searches' curves, from where all seeds have a trial."""
    curves = [np.array(record.anytime) for record in records if record.anytime]
    if not curves:
        return
    first, last = max(curve[0, 0] for curve in curves), max(curve[-1, 0] for curve in curves)
    steps = np.geomspace(max(first, 1), max(last, first + 1), GRID_POINTS)
    best = np.array([curve[np.searchsorted(curve[:, 0], steps * (1 + 1e-9), side="right") - 1, 1] for curve in curves])
    mean, deviation = 100 * best.mean(axis=0), 100 * best.std(axis=0, ddof=min(1, len(best) - 1))
    axis.plot(steps, mean, style.line, color=style.colour)
    axis.fill_between(steps, mean - deviation, mean + deviation, color=style.colour, alpha=0.08, linewidth=0)
