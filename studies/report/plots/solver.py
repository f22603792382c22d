"""The figure of the compressor at work: how far the network and its compressed form are apart, and the multiplier."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn
from matplotlib.lines import Line2D
from pandas import DataFrame

from studies.report.names import target_name
from studies.report.plots.style import COLOURS, Drawing, explain, finish, house_style, log_axis, panels, plain_numbers

SERIES = {"residual": "‖W \N{MINUS SIGN} V‖", "price": "multiplier"}


def solver_history(name: str, title: str, blocks: Sequence[DataFrame]) -> Drawing:
    """Returns distance and multiplier of each projection, one panel each; a colour a target, a line a seed.

    Args:
        name: of the figure.
        title: of whose history it is.
        blocks: finished cells of the compressor with a history, of each target.
    """
    histories = pd.concat(
        DataFrame(cell["history"]).assign(target=target_name(cell["target"]), seed=cell["seed"])
        for block in blocks
        for _, cell in block.iterrows()
    )
    targets = list(dict.fromkeys(histories["target"]))
    colours = dict(zip(targets, (COLOURS * 3)[: len(targets)], strict=True))
    known = [key for key in SERIES if key in histories and (histories[key] > 0).any()]
    with house_style():
        figure, axes = panels(title, [1.15] * len(known), share_x="all")
        for axis, key in zip(axes, known, strict=True):
            shown = histories[np.isfinite(histories[key]) & (histories[key] > 0)]
            seaborn.lineplot(
                shown, x="step", y=key, hue="target", units="seed", estimator=None, errorbar=None, ax=axis,
                palette=colours, drawstyle="steps-post", alpha=0.7, linewidth=0.8, legend=False,
            )  # fmt: skip
            log_axis(axis, "y", shown[key])
            axis.set_ylabel(SERIES[key])
            axis.set_xlabel("gradient steps")
            plain_numbers(axis, "x")
        figure.align_ylabels()
        handles = [Line2D([], [], color=colour, label=target) for target, colour in colours.items()]
        note = (
            "one line for each seed, a step for each projection; W: weights, V: what would be written; multiplier: "
            "squared error per bit"
        )
        explain(figure, note, handles if len(targets) > 1 else ())
        return finish(figure, name, title, "Axes are logarithmic where values differ by factors.")
