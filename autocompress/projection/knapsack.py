"""Integer solutions of projection A's knapsack near the one of its linear relaxation; see `pruning`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from autocompress.projection.ranked_weights import RankedWeights


def _neighbours(
    layers: Sequence[RankedWeights], counts: Sequence[int], floor: Sequence[int], reach: int
) -> list[tuple[list[float], list[float]]]:
    """Returns for each layer the squares of its next weights, descending, and of its last kept ones, ascending."""
    windows = []
    for layer, count, least in zip(layers, counts, floor, strict=True):
        edge = layer.order.numel() - count
        next_ones = layer.squares[max(0, edge - reach) : edge].flip(0)
        last_ones = layer.squares[edge : min(edge + reach, layer.order.numel() - least)]
        windows.append((next_ones, last_ones))
    flat = torch.cat([part for window in windows for part in window]).tolist()  # one transfer from the device
    result = []
    for window in windows:
        parts = [[flat.pop(0) for _ in range(part.numel())] for part in window]
        result.append((parts[0], parts[1]))
    return result


def fill(
    layers: Sequence[RankedWeights], bits: Sequence[int], counts: Sequence[int], left: int
) -> tuple[list[int], float]:
    """Returns (counts, gained squares) after adding, by falling density, every weight that still fits."""
    filled, gain = list(counts), 0.0
    windows = _neighbours(layers, counts, [0] * len(layers), left // min(bits))  # more do not fit
    items = sorted(
        (
            (square / bit, -index, square)
            for index, bit in enumerate(bits)
            for square in windows[index][0]
            if square > 0
        ),
        reverse=True,
    )
    for _, negated, square in items:
        if bits[-negated] <= left:
            filled[-negated] += 1
            left -= bits[-negated]
            gain += square
    return filled, gain


def best_nearby(
    layers: Sequence[RankedWeights], bits: Sequence[int], counts: Sequence[int], floor: Sequence[int], left: int
) -> tuple[list[int], float]:
    """Returns (counts, gained squares) of an optimum, given the linear relaxation's counts and what they leave.

    best[u] = most gained by the layers with one of the sizes seen so far, for u bits used beyond `counts`.
    """
    reach = 2 * max(bits) + 2
    span = reach * max(bits)
    windows = _neighbours(layers, counts, floor, reach)
    best = np.full(2 * span + 1, -np.inf)
    best[span] = 0.0
    history: list[tuple[npt.NDArray[np.int64], list[tuple[float, int]], list[tuple[float, int]], int]] = []
    for bit in sorted(set(bits)):
        members = [index for index, other in enumerate(bits) if other == bit]
        added = sorted(((s, i) for i in members for s in windows[i][0]), key=lambda item: -item[0])[:reach]
        removed = sorted(((s, i) for i in members for s in windows[i][1]), key=lambda item: item[0])[:reach]
        gains = {0: 0.0}
        for step, (square, _) in enumerate(added, 1):
            gains[step] = gains[step - 1] + square
        for step, (square, _) in enumerate(removed, 1):
            gains[-step] = gains[1 - step] - square
        table = np.full((len(gains), best.size), -np.inf)
        changes = sorted(gains)
        for row, change in enumerate(changes):
            shift = change * bit
            source = best[max(0, -shift) : best.size - max(0, shift)]
            table[row, max(0, shift) : best.size + min(0, shift)] = source + gains[change]
        history.append((np.asarray(changes)[table.argmax(0)], added, removed, bit))
        best = table.max(0)
    used = int(best[: span + left + 1].argmax())
    gain, solution = float(best[used]), list(counts)
    for changes_at, added, removed, bit in reversed(history):
        change = int(changes_at[used])
        for _, index in added[: max(0, change)]:
            solution[index] += 1
        for _, index in removed[: max(0, -change)]:
            solution[index] -= 1
        used -= change * bit
    return solution, gain
