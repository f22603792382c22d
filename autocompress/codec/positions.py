"""Where the nonzeros of a weight tensor are.

The tensor is seen as kernels [R, G, H, W]: R rows (outputs), G groups (inputs), H x W taps. First comes one density
class per row, so that a dead row costs a fraction of a bit and nothing more. Then the live rows: the odds of a nonzero
are those of its row times a factor of its group, of its tap, of its column (group and tap together) and of its
neighbourhood (the taps above and to the left in the same kernel). Each factor is the ratio of the nonzeros seen so far
to those expected without it, shrunk towards one by a prior count; a group starts lower where the same channel was dead
as an output of an earlier tensor. All of it is learned while coding, so no table is sent.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from autocompress.codec.adaptive_models import CONSTANTS, Ordered, blocks, cuts, fixed_point
from autocompress.codec.range_coder import ONE, Array, Coder, Flags, Floats

# How likely the groups are before anything is known: all alike, or by the nonzeros of the same channel as an output.
STARTS = 5


@lru_cache(1024)
def class_bounds(columns: int) -> Array:
    """Returns the lowest count of each class of rows [classes + 1], the last one being columns + 1.

    Counts are exact at both ends, and as coarse in between as the spread of a count makes useful.
    """
    half, low = [0, 1], 1
    while low <= columns // 2:
        low += max(1, low // 3)
        half.append(low)
    half = [low for low in half if 2 * low <= columns + 1]
    bounds = np.array(sorted({*half, *(columns + 1 - low for low in half)}), np.int64)
    bounds.flags.writeable = False
    return bounds


def code_rows(coder: Coder, counts: Array, columns: int) -> Array:
    """Codes one class per row for `counts` [R] of nonzeros. Returns the classes [R]."""
    bounds = class_bounds(columns)
    classes = np.searchsorted(bounds, counts, side="right") - 1
    if coder.compiled is not None:
        return coder.compiled.code_classes(classes, len(bounds) - 1, cuts(len(counts), 1), CONSTANTS)
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


# Prior counts, in expected nonzeros. The encoder tries them; their indices are in the stream.
COLUMN_PRIORS = (3.0, 1.0, 10.0, 1e6)
GROUP_PRIORS = (1.0, 0.3, 3.0, 10.0, 30.0)
_TAP_PRIOR = 30.0
_CONTEXT_PRIOR = 2.0
_CONTEXTS = 9
# Rows are coded in blocks of this fraction of the rows before, between which the factors are learned.
BLOCK_PART = 8


@dataclass
class PositionModels:
    """What is learned from one tensor to the next.

    Attributes:
        seen: int64 [9], nonzeros by neighbourhood.
        expected: int64 [9], the same expected without looking at neighbours, times ONE.
        total: int64 [9], positions by neighbourhood.
    """

    seen: Array = field(default_factory=lambda: np.zeros(_CONTEXTS, np.int64))
    expected: Array = field(default_factory=lambda: np.zeros(_CONTEXTS, np.int64))
    total: Array = field(default_factory=lambda: np.zeros(_CONTEXTS, np.int64))

    def copy(self) -> PositionModels:
        return PositionModels(self.seen.copy(), self.expected.copy(), self.total.copy())

    def fade(self) -> None:
        """Keeps a quarter of what was learned."""
        self.seen //= 4
        self.expected //= 4
        self.total //= 4


def odds_ratio(seen: Array, expected: Floats | float, total: Array | int, prior: float) -> Floats:
    """Returns how much more likely nonzeros were than expected, as a ratio of odds, elementwise."""
    ratio: Floats = (seen + prior) / (expected + prior) * ((total - expected + prior) / (total - seen + prior))
    return ratio


def _scaled(odds: Floats, wanted2: Array) -> Floats:
    """Returns odds [R, C] with each row rescaled so that about `wanted2 / 2` [R] nonzeros are expected in it."""
    columns = odds.shape[1]
    for _ in range(2):
        expected = fixed_point(odds).sum(1) / ONE
        expected = np.minimum(np.maximum(expected, 1e-3), columns - 1e-3)
        wanted = wanted2 / 2
        odds = odds * (wanted * (columns - expected) / ((columns - wanted) * expected))[:, None]
    limited: Floats = np.minimum(np.maximum(odds, 2.0**-24), 2.0**24)
    return limited


class _Columns:
    """Factors of groups, taps and columns of one tensor, learned as its rows pass."""

    def __init__(self, shape: tuple[int, int, int], group_start: Array, column: float, group: float) -> None:
        groups, height, width = shape
        self.taps = height * width
        self.start = group_start / 256.0
        self.column_prior, self.group_prior = column, group
        self.share = group_start / int(group_start.sum())
        self.groups = np.zeros(groups, np.int64)
        self.tap_counts = np.zeros(self.taps, np.int64)
        self.columns = np.zeros((groups, self.taps), np.int64)
        self.expected = np.zeros((groups, self.taps), np.int64)
        self.rows, self.nonzeros2 = 0, 0

    def factors(self) -> tuple[Floats, Floats]:
        """Returns (factors of groups times taps, factors of columns), each [G, T]."""
        groups = len(self.groups)
        group = self.start
        if self.taps > 1:
            mean = np.minimum(self.nonzeros2 / 2 * self.share, float(self.rows * self.taps))
            group = group * odds_ratio(self.groups, mean, self.rows * self.taps, self.group_prior)
        tap = odds_ratio(self.tap_counts, self.nonzeros2 / 2 / self.taps, self.rows * groups, _TAP_PRIOR)
        base = group[:, None] * tap[None, :]
        column = odds_ratio(self.columns, self.expected / ONE, self.rows, self.column_prior)
        return base, column

    def learn(self, mask: Flags, base: Floats, wanted2: Array) -> None:
        """Adds rows [r, G, T] of flags, of which `wanted2 / 2` [r] nonzeros were expected under `base`."""
        mean2 = np.array([int(wanted2.sum()) // len(wanted2)], np.int64)
        expected = fixed_point(_scaled(base.reshape(1, -1), np.maximum(mean2, 1))).reshape(base.shape)
        self.expected += expected * len(mask)
        self.columns += mask.sum(0)
        self.groups += mask.sum((0, 2))
        self.tap_counts += mask.sum((0, 1))
        self.rows += len(mask)
        self.nonzeros2 += int(wanted2.sum())


def code_flags(
    coder: Coder,
    mask: Flags,
    classes: Array,
    models: PositionModels,
    *,
    group_start: Array,
    priors: tuple[float, float],
    neighbours: bool,
    part: int = BLOCK_PART,
) -> None:
    """Codes the flags of a tensor in place.

    Args:
        coder: the stream.
        mask: int8 [R, G, H, W], 1 for a nonzero; filled in when decoding.
        classes: row classes [R] of `code_rows`.
        models: what earlier tensors taught; updated.
        group_start: int64 [G] of `starts`.
        priors: prior counts of columns and of groups.
        neighbours: whether the taps of a kernel are coded one after another, in the context of those before.
        part: blocks are one in so many of the rows before; another number is another stream.
    """
    groups, height, width = mask.shape[1:]
    taps = height * width
    bounds = class_bounds(groups * taps)
    low, high = bounds[classes], bounds[classes + 1] - 1
    mask[low == groups * taps] = 1
    live = np.flatnonzero((low > 0) & (low < groups * taps))
    if coder.compiled is not None:
        live_rows = mask[live]
        coder.compiled.code_positions(
            live_rows,
            classes[live],
            bounds[:-1] + bounds[1:] - 1,
            cuts(len(live), groups * taps, part),
            group_start,
            np.array([*priors, _TAP_PRIOR, _CONTEXT_PRIOR]),
            neighbours,
            (models.seen, models.expected, models.total),
        )
        mask[live] = live_rows
        return
    factors = _Columns((groups, height, width), group_start, *priors)
    for block in blocks(len(live), groups * taps, part):
        rows = live[block]
        wanted2 = (low + high)[rows]
        base, column = factors.factors()
        weights = np.minimum(np.maximum(base * column, 2.0**-20), 2.0**20)
        start = wanted2 / (2 * groups * taps - wanted2)
        odds = _scaled(start[:, None] * weights.reshape(1, -1), wanted2)
        flags = mask[rows]
        if neighbours and taps > 1:
            _code_taps(coder, flags, odds.reshape(flags.shape), models)
        else:
            flags[:] = coder.flags(fixed_point(odds).ravel(), flags.ravel()).reshape(flags.shape)
        mask[rows] = flags
        factors.learn(flags.reshape(len(rows), groups, taps), base, wanted2)


def _code_taps(coder: Coder, flags: Flags, odds: Floats, models: PositionModels) -> None:
    """Codes flags [r, G, H, W] in place, tap by tap, each in the context of its neighbours before it."""
    rows, groups, height, width = flags.shape
    around = np.zeros((rows, groups, height + 1, width + 2), np.int64)
    plain = fixed_point(odds)
    for i in range(height):
        for j in range(width):
            near = around[:, :, i, j + 1] + around[:, :, i + 1, j]
            context = (near * 3 + around[:, :, i, j] + around[:, :, i, j + 2]).ravel()
            factor = odds_ratio(models.seen, models.expected / ONE, models.total, _CONTEXT_PRIOR)[context]
            probabilities = fixed_point(odds[:, :, i, j].ravel() * factor)
            values = coder.flags(probabilities, flags[:, :, i, j].ravel())
            flags[:, :, i, j] = around[:, :, i + 1, j + 1] = values.reshape(rows, groups)
            # Weighted counts are float64 sums of integers below 2**53: exact in any order.
            models.seen += np.bincount(context, values, _CONTEXTS).astype(np.int64)
            models.expected += np.bincount(context, plain[:, :, i, j].ravel(), _CONTEXTS).astype(np.int64)
            models.total += np.bincount(context, minlength=_CONTEXTS)
