"""The code tables of a layer: from nothing, re-estimated from an assignment, and grown where the multiplier allows.

How many values a codebook has: codes are merged and split where `error + multiplier * bits` falls.

Two neighbouring codes with a and b members and centroids d apart, merged, add a b / (a + b) d^2 of squared error (exact
for centroids) and save one codebook value and (a + b) H(a / (a + b)) bits of codes; zero is a code whose centroid does
not move. A code that is split in half loses up to three quarters of its squared error (a uniform cell) and pays one
value and one bit per member. So nobody chooses a number of codes: it follows from the multiplier.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from autocompress.constraints.rate_distortion.assignment import Assignment, Layer, LayerTables, Weights
from autocompress.constraints.rate_distortion.rates import (
    CODEBOOK_VALUE_BITS,
    CodeLengths,
    Counts,
    estimate_code_lengths,
)
from autocompress.network.compressed_tensors import round_codebook

# What splitting an interval in two takes away of its squared error: 1 - 1/4 for a uniform density.
SPLIT_GAIN = 0.75


def _choice_bits(counts: Sequence[int]) -> float:
    """Returns what telling codes apart costs their members: the sum of count * log2(total / count)."""
    total = sum(counts)
    return sum(count * math.log2(total / count) for count in counts if count)


@dataclass
class _Group:
    """Codes that have become one: who they are, how many members they have and their sum; zero stays at zero."""

    codes: list[int]
    count: int
    total: float
    is_zero: bool = False

    @property
    def mean(self) -> float:
        return 0.0 if self.is_zero or not self.count else self.total / self.count

    @property
    def gain(self) -> float:
        """What the centroid takes off the members' squared error."""
        return self.mean**2 * self.count


def _joined(groups: Sequence[_Group]) -> _Group:
    codes = [code for group in groups for code in group.codes]
    zero = any(group.is_zero for group in groups)
    return _Group(codes, sum(g.count for g in groups), sum(g.total for g in groups), zero)


def _gain(groups: list[_Group], value_cost: float, multiplier: float) -> float:
    """Returns by how much `error + multiplier * bits` falls when these neighbours become one."""
    error = sum(group.gain for group in groups) - _joined(groups).gain
    return value_cost * (len(groups) - 1) + multiplier * _choice_bits([group.count for group in groups]) - error


def merge_codes(
    counts: Sequence[int], sums: Sequence[float], zeros: int, value_cost: float, multiplier: float
) -> tuple[list[int], list[float]]:
    """Returns where each old code goes, and the new centroids.

    Greedy: of all neighbouring pairs, zero included, and of the three around zero, the merger that lowers
    `error + multiplier * bits` most is made, until none does.

    Args:
        counts: members of each code.
        sums: their sums.
        zeros: elements that are zero.
        value_cost: Lagrangian cost of one codebook value in the file: multiplier x bits.
        multiplier: squared error per bit.

    Returns:
        for each old code its new number, from 1 (0 = zero), and the means, ascending.
    """
    groups = [_Group([i], count, sums[i]) for i, count in enumerate(counts) if count and sums[i] != 0]
    groups.append(_Group([], zeros, 0.0, is_zero=True))
    groups.sort(key=lambda group: group.mean)
    zero = next(i for i, group in enumerate(groups) if group.is_zero)
    pairs = [_gain(groups[i : i + 2], value_cost, multiplier) for i in range(len(groups) - 1)]
    while len(groups) > 2:  # zero and one value stay: a tensor that is all zero passes nothing on
        gain = max(pairs)
        first = pairs.index(gain)
        after = first + 2
        if 0 < zero < len(groups) - 1 and len(groups) > 3:
            three = _gain(groups[zero - 1 : zero + 2], value_cost, multiplier)
            if three > gain:
                gain, first, after = three, zero - 1, zero + 2
        if gain <= 0:
            break
        groups[first:after] = [_joined(groups[first:after])]
        zero = first if first <= zero < after else zero - (after - first - 1) * (zero >= after)
        # Only the gains of the pairs that the new group is in are new.
        neighbours = range(max(first - 1, 0), min(first + 1, len(groups) - 1))
        pairs[max(first - 1, 0) : after] = [_gain(groups[i : i + 2], value_cost, multiplier) for i in neighbours]
    place = [0] * len(counts)
    kept = [group for group in groups if not group.is_zero]
    for number, group in enumerate(kept):
        for i in group.codes:
            place[i] = number + 1
    return place, [group.mean for group in kept]


def split_codes(
    values: Sequence[float],
    counts: Sequence[int],
    errors: Sequence[float],
    value_cost: float,
    multiplier: float,
    max_codes: int,
) -> tuple[list[float], list[int]]:
    """Returns values with those split whose squared error outweighs the bits of telling their halves apart.

    Args:
        values: codebook, ascending.
        counts: members of each.
        errors: squared error of each.
        value_cost: Lagrangian cost of one codebook value in the file: multiplier x bits.
        multiplier: squared error per bit.
        max_codes: values that the codebook may have.

    Returns:
        the new values, ascending, and for each the old code it comes from.
    """
    new: list[float] = []
    parents: list[int] = []
    room = max_codes - len(values)
    for i, (value, count, error) in enumerate(zip(values, counts, errors, strict=True)):
        half = 0.5 * math.sqrt(3 * error / count) if count else 0.0  # a quarter of the width of a uniform cell
        worth = SPLIT_GAIN * error > value_cost + multiplier * count
        if worth and room > 0 and half > 0 and abs(value) > half:
            new += [value - half, value + half]
            parents += [i, i]
            room -= 1
        else:
            new.append(value)
            parents.append(i)
    order = sorted(range(len(new)), key=new.__getitem__)
    return [new[i] for i in order], [parents[i] for i in order]


MAX_CODES = 255
MAX_RANKED = 1 << 22  # weights by which the first threshold is told
NEW_CODE_BITS = 2.0  # what a code that nothing uses yet is expected to cost


def re_estimate(layer: Layer, assigned: Assignment, multiplier: float) -> LayerTables:
    """Returns the tables that fit an assignment: its centroids, as many as are worth their place, and code lengths.

    Args:
        layer: X and the tables of the assignment.
        assigned: the assignment.
        multiplier: squared error per bit.
    """
    counts = assigned.counts
    zeros = layer.weights.matrix.numel() - counts.nonzeros
    place, means = merge_codes(
        counts.codes.tolist(), assigned.sums.tolist(), zeros, multiplier * CODEBOOK_VALUE_BITS, multiplier
    )
    number = np.array(place, np.int64)
    if (counts.codes[number == 0] > 0).any():  # some have become zero
        counts = assigned.counts_with(number > 0)
    merged = np.bincount(number, counts.codes, len(means) + 1)[1:].astype(np.int64)
    counted = Counts(counts.rows, counts.columns, merged)
    return LayerTables(round_codebook(torch.tensor(means, dtype=torch.float32)), estimate_code_lengths(counted))


def used_tables(layer: Layer, assigned: Assignment) -> LayerTables:
    """Returns the layer's tables without the values that nothing uses, on the grid on which they are written."""
    used = torch.from_numpy(assigned.counts.codes > 0)
    values, lengths = layer.tables.values.cpu(), layer.tables.lengths
    code_bits = lengths.code_bits.cpu()[used]
    return LayerTables(round_codebook(values[used]), CodeLengths(code_bits, lengths.row_bits, lengths.column_bits))


def _with_splits(layer: Layer, assigned: Assignment, multiplier: float) -> LayerTables:
    """Returns tables in which codes too wide for the multiplier are split in two; the next assignment uses them."""
    size = layer.values.size
    counts, squared_errors = assigned.counts.codes, assigned.squared_errors
    values, parents = split_codes(
        layer.values.tolist(),
        counts.tolist(),
        squared_errors.tolist(),
        multiplier * CODEBOOK_VALUE_BITS,
        multiplier,
        MAX_CODES,
    )
    if len(values) == size:
        return layer.tables
    source = torch.tensor(parents)
    lengths = layer.tables.lengths
    code_bits = lengths.code_bits.cpu()[source] + (torch.bincount(source, minlength=size)[source] > 1).float()
    lengths = CodeLengths(code_bits, lengths.row_bits, lengths.column_bits)
    return LayerTables(torch.tensor(values, dtype=torch.float32), lengths)


def _with_new_values(layer: Layer, assigned: Assignment, tables: LayerTables, multiplier: float) -> LayerTables:
    """Returns tables with a small new value on either side of zero where the weights now zero are worth it."""
    lengths = tables.lengths
    position_bits = float(lengths.row_bits.mean() + lengths.column_bits.mean()) + NEW_CODE_BITS
    values, code_bits = tables.values, lengths.code_bits
    # Below a quarter of the smallest value zero is the nearer neighbour of anything that could be added.
    least = max(
        math.sqrt(max(multiplier * position_bits, 0.0)), float(values.abs().min()) / 4 if values.numel() else 0.0
    )
    tails = zip((-1, 1), layer.weights.tails(least), assigned.tails(least), strict=True)
    for sign, (count_all, sum_all), (count_kept, sum_kept) in tails:
        count = count_all - count_kept
        if values.numel() >= MAX_CODES or not count:
            continue
        mean = sign * (sum_all - sum_kept) / count
        saved = mean**2 * count - multiplier * (position_bits * count + CODEBOOK_VALUE_BITS)
        if saved > 0 and not bool((values == sign * mean).any()):
            values = torch.cat([values, values.new_tensor([sign * mean])])
            code_bits = torch.cat([code_bits, code_bits.new_tensor([NEW_CODE_BITS])])
    if values.numel() == tables.values.numel():
        return tables
    order = values.argsort()
    return LayerTables(values[order], CodeLengths(code_bits[order], lengths.row_bits, lengths.column_bits))


def grown_tables(layer: Layer, assigned: Assignment, multiplier: float) -> LayerTables:
    """Returns tables with all the values that are worth their place at a multiplier: splits, then new ones.

    The same tables where there are none.
    """
    if not layer.values.size:
        return layer.tables
    return _with_new_values(layer, assigned, _with_splits(layer, assigned, multiplier), multiplier)


def cold_tables(weights: Sequence[Weights], budget_bits: float) -> tuple[float, list[LayerTables]]:
    """Returns a multiplier and tables from nothing: the largest weights that fit by a guess, uniform values."""
    matrices = [each.matrix for each in weights]
    total = sum(matrix.numel() for matrix in matrices)
    every = -(-total // MAX_RANKED)
    ranked = torch.cat([matrix.flatten()[::every].abs() for matrix in matrices])
    # Solve keep * (log2(e * total / keep) + 3) = budget for the number of weights to keep.
    keep = min(max(budget_bits / 4, len(matrices)), 0.95 * total)
    for _ in range(30):
        keep = min(max(budget_bits / (math.log2(math.e * total / keep) + 3), len(matrices)), 0.95 * total)
    rank = ranked.numel() - int(keep if every == 1 else keep * ranked.numel() / total)
    threshold = float(ranked.kthvalue(max(1, rank)).values)
    positive = ranked[ranked > 0]
    smallest = float(positive.min()) if positive.numel() else 1e-12
    threshold = max(threshold, smallest / 2)
    multiplier = threshold**2 / (math.log2(math.e * total / keep) + 3)
    # The uniform step whose error slope equals the multiplier at high rate.
    step = math.sqrt(6 * multiplier / math.log(2))
    tables = []
    # Codebooks together take at most a quarter of the budget to start with; splits add what more is worth its place.
    most = max(1, int(budget_bits / (4 * CODEBOOK_VALUE_BITS * len(matrices)) / 2))
    for matrix in matrices:
        low, high = float(matrix.min()), float(matrix.max())
        size = max(1, min(MAX_CODES // 2, most, math.ceil((max(high, -low) - threshold) / step)))
        levels = threshold + (torch.arange(size, device=matrix.device) + 0.5) * max(
            (max(high, -low) - threshold) / size, 1e-12
        )
        values = torch.cat(
            [-levels.flip(0)[levels.flip(0) <= max(-low, 0) + step], levels[levels <= max(high, 0) + step]]
        )
        values = values if values.numel() else torch.tensor([high if high else 1e-12], device=matrix.device)
        codes = (torch.bucketize(matrix.contiguous(), 0.5 * (values[1:] + values[:-1])) + 1).to(torch.int16)
        codes = torch.where(matrix.abs() > threshold, codes, torch.zeros_like(codes))
        counted = Counts.of_codes(codes, values.numel())
        tables.append(LayerTables(values.float().cpu(), estimate_code_lengths(counted)))
    return multiplier, tables
