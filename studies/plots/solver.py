"""The figure of the compressor at work: how far the network and its compressed twin are apart, and the price."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.ticker import FuncFormatter

from studies.blocks import Block
from studies.plots.style import Drawing, MethodStyle, finish, house_style, method_legend, panels
from studies.record import Record

SERIES = {"residual": "residual ‖W \N{MINUS SIGN} V‖", "price": "price, squared error per bit"}


def solver_history(name: str, task: str, blocks: Sequence[Block], styles: dict[str, MethodStyle]) -> Drawing:
    """Returns residual and price of each projection: one row each, one column a target, one line a seed."""
    with house_style():
        figure, axes = panels(len(SERIES), len(blocks), 2.4, share_y="row")
        used: set[str] = set()
        for column, block in enumerate(blocks):
            for cells in reversed(block.methods):
                style = styles[cells.method]
                for record in cells.records.values():
                    used |= {cells.method} if record.history else set()
                    for row, key in enumerate(SERIES):
                        steps, values = _positive(record, key)
                        axes[row][column].plot(steps, values, style.line, color=style.colour, alpha=0.6, linewidth=1.0)
            for row in range(len(SERIES)):
                axis = axes[row][column]
                if not any(np.size(line.get_xdata()) for line in axis.lines):  # a target that knows no price
                    axis.set_xlim(axes[0][column].get_xlim())
                    axis.text(0.5, 0.5, "none", transform=axis.transAxes, ha="center")
                axis.set_yscale("log")
                axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
                axis.locator_params(axis="x", nbins=6)
            axes[0][column].set_title(f"{task}, {block.target}")
            axes[-1][column].set_xlabel("gradient steps")
        for row, label in enumerate(SERIES.values()):
            axes[row][0].set_ylabel(label)
        figure.align_ylabels()
        if len(used) > 1:
            method_legend(figure, {method: style for method, style in styles.items() if method in used}, lines=True)
        return finish(
            figure,
            name,
            f"{task}: the compressor at work",
            "One line for each seed, one value for each projection: the distance between the weights W and their "
            "compressed twin V, and the price at which the projection met the budget; log axes, zeros left out.",
        )


def _positive(record: Record, key: str) -> tuple[list[float], list[float]]:
    points = [(entry["step"], entry.get(key) or 0.0) for entry in record.history]
    kept = [(step, value) for step, value in points if value > 0 and math.isfinite(value)]
    return [step for step, _ in kept], [value for _, value in kept]


def has_history(blocks: Sequence[Block]) -> bool:
    """Returns whether any record tells of projections."""
    return any(record.history for block in blocks for record in block.records)
