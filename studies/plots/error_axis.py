"""An axis of accuracies on which errors are on a log scale, where they differ by factors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from numpy.typing import NDArray

# Accuracies in percent are linear unless the largest error is so many times the smallest.
FACTOR = 4.0
# Errors in points that ticks stand at; below the least one the axis ends, as an error of 0 has no logarithm.
TICKS = (50.0, 20.0, 10.0, 5.0, 2.0, 1.0, 0.5, 0.2, 0.1, 0.05)
MARGIN_DECADES = 0.15


def error_axis(axis: Axes, accuracies: Sequence[float]) -> None:
    """Sets the scale of a y axis of accuracies so that all of them can be told apart.

    Args:
        axis: on which percentages are, or will be, drawn.
        accuracies: percent, all that has to be seen.
    """
    errors = 100 - np.array(accuracies)
    worst, best = float(errors.max()), max(float(errors.min()), TICKS[-1])
    if worst < FACTOR * best:
        return
    axis.set_yscale("function", functions=(_forward, _inverse))
    margin = 10**MARGIN_DECADES
    axis.set_ylim(100 - worst * margin, 100 - max(best / margin, TICKS[-1] / 2))
    shown = [100 - tick for tick in TICKS if best / margin <= tick <= worst * margin]
    axis.yaxis.set_major_locator(FixedLocator(shown))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _forward(accuracy: NDArray[np.float64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = -np.log10(np.maximum(100 - np.asarray(accuracy, float), TICKS[-1] / 4))
    return found


def _inverse(value: NDArray[np.float64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = 100 - 10 ** -np.asarray(value, float)
    return found
