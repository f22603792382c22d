"""The figure of a study that varies the compressor's constants: accuracy against each, beside that of the default."""

from __future__ import annotations

import re
from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from studies.blocks import Block, MethodCells
from studies.plots.error_axis import error_axis
from studies.plots.style import INK, Drawing, finish, house_style, method_styles, panels
from studies.record import COMPRESSOR

# How a variant is named that has one constant at a value of its own.
VARIED = re.compile(rf"{COMPRESSOR} (.+)=([0-9.]+)")


def varied_constants(block: Block) -> dict[str, list[tuple[float, MethodCells]]]:
    """Returns for each constant that a block varies its values, ascending, with their finished cells."""
    found: dict[str, list[tuple[float, MethodCells]]] = defaultdict(list)
    for cells in block.methods:
        match = VARIED.fullmatch(cells.method)
        if match and cells.records:
            found[match[1]].append((float(match[2]), cells))
    return {name: sorted(values, key=lambda each: each[0]) for name, values in found.items()}


def sensitivity(name: str, task: str, block: Block) -> Drawing:
    """Returns test accuracy against each constant, one panel each; the band is the default's."""
    constants = varied_constants(block)
    colour = method_styles([COMPRESSOR])[COMPRESSOR].colour
    with house_style():
        figure, ((*axes,),) = panels(1, len(constants), 3.4, share_y="row")
        everything = [_percent(cells) for cells in block.methods if cells.records]
        for axis, (constant, values) in zip(axes, constants.items(), strict=True):
            if block.compressor is not None:
                usual = _percent(block.compressor)
                spread = usual.std(ddof=1) if len(usual) > 1 else 0.0
                axis.axhspan(usual.mean() - spread, usual.mean() + spread, color=INK, alpha=0.12, linewidth=0)
                axis.axhline(usual.mean(), color=INK, linewidth=1.0, linestyle=":")
            places = range(len(values))  # values at equal distances: some are close to each other
            found = [_percent(cells) for _, cells in values]
            spreads = [each.std(ddof=1) if len(each) > 1 else 0.0 for each in found]
            axis.errorbar(places, [each.mean() for each in found], yerr=spreads, fmt="o-", color=colour, elinewidth=1.0)
            axis.set_xticks(list(places), [f"{value:g}" for value, _ in values])
            axis.set_xlim(-0.5, len(values) - 0.5)
            axis.set_title(constant)
            axis.set_xlabel("value")
        error_axis(axes[0], [float(value) for each in everything for value in each])
        axes[0].set_ylabel("test accuracy, %")
        return finish(
            figure,
            name,
            f"{task}, {block.target}: the compressor's constants",
            "Test accuracy with one constant at another value, mean and standard deviation over the seeds; dotted line "
            "and band: the same with all constants as they are. The vertical axis is logarithmic in the errors where "
            "these differ by factors.",
        )


def _percent(cells: MethodCells) -> NDArray[np.float64]:
    """Returns the test accuracies."""
    return 100 * np.array([record.test_accuracy or 0.0 for record in cells.records.values()], float)
