"""How many nonzeros the rows of a weight tensor hold, and what that says about the next tensor's inputs."""

from __future__ import annotations

import numpy as np

from autocompress.codec.adaptive_models import Ordered, blocks
from autocompress.codec.range_coder import Array, Coder

# How likely the groups are before anything is known: all alike, or by the nonzeros of the same channel as an output.
STARTS = 5


def class_bounds(columns: int) -> Array:
    """Returns the lowest count of each class of rows [classes + 1], the last one being columns + 1.

    Counts are exact at both ends, and as coarse in between as the spread of a count makes useful.
    """
    half, low = [0, 1], 1
    while low <= columns // 2:
        low += max(1, low // 3)
        half.append(low)
    half = [low for low in half if 2 * low <= columns + 1]
    return np.array(sorted({*half, *(columns + 1 - low for low in half)}), np.int64)


def code_rows(coder: Coder, counts: Array, columns: int) -> Array:
    """Codes one class per row for `counts` [R] of nonzeros. Returns the classes [R]."""
    bounds = class_bounds(columns)
    classes = np.searchsorted(bounds, counts, side="right") - 1
    models = Ordered(len(bounds) - 1)
    for block in blocks(len(counts), 1):
        classes[block] = models.code(coder, classes[block])
    return classes


def starts(parent: Array, kind: int) -> Array:
    """Returns how likely each group is at first [G], 256 being usual, all positive.

    Args:
        parent: nonzeros [G] of the same channels as the outputs of an earlier tensor.
        kind: 0 all alike; 1, 2 dead channels are unlikely, or very; 3, 4 by the root of the nonzeros, or by them.
    """
    if kind < 3:
        return np.where((parent > 0) | (kind == 0), 256, (0, 13, 1)[kind])
    size = parent if kind == 4 else (np.sqrt(parent.astype(np.float64)) * 256.0).astype(np.int64)
    return np.maximum(size * 256 * len(parent) // max(1, int(size.sum())), 1)
