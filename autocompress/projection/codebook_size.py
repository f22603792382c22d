"""How many values a codebook has: codes are merged and split where `error + price * bits` falls.

Two neighbouring codes with a and b members and centroids d apart, merged, add a b / (a + b) d^2 of squared error (exact
for centroids) and save one codebook value and (a + b) H(a / (a + b)) bits of codes; zero is a code whose centroid does
not move. A code that is split in half loses up to three quarters of its squared error (a uniform cell) and pays one
value and one bit per member. So nobody chooses a number of codes: it follows from the price.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

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
    def energy(self) -> float:
        """What the centroid takes off the members' squared error."""
        return self.mean**2 * self.count


def _joined(groups: Sequence[_Group]) -> _Group:
    codes = [code for group in groups for code in group.codes]
    zero = any(group.is_zero for group in groups)
    return _Group(codes, sum(g.count for g in groups), sum(g.total for g in groups), zero)


def _gain(groups: list[_Group], value_cost: float, price: float) -> float:
    """Returns by how much `error + price * bits` falls when these neighbours become one."""
    error = sum(group.energy for group in groups) - _joined(groups).energy
    return value_cost * (len(groups) - 1) + price * _choice_bits([group.count for group in groups]) - error


def merge_codes(
    counts: Sequence[int], sums: Sequence[float], zeros: int, value_cost: float, price: float
) -> tuple[list[int], list[float]]:
    """Returns where each old code goes, and the new centroids.

    Greedy: of all neighbouring pairs, zero included, and of the three around zero, the merger that lowers
    `error + price * bits` most is made, until none does.

    Args:
        counts: members of each code.
        sums: their sums.
        zeros: elements that are zero.
        value_cost: price of one codebook value in the file.
        price: squared error per bit.

    Returns:
        for each old code its new number, from 1 (0 = zero), and the means, ascending.
    """
    groups = [_Group([i], count, sums[i]) for i, count in enumerate(counts) if count and sums[i] != 0]
    groups.append(_Group([], zeros, 0.0, is_zero=True))
    groups.sort(key=lambda group: group.mean)
    while len(groups) > 2:  # zero and one value stay: a tensor that is all zero passes nothing on
        spans = [slice(i, i + 2) for i in range(len(groups) - 1)]
        middle = next(i for i, group in enumerate(groups) if group.is_zero)
        if 0 < middle < len(groups) - 1 and len(groups) > 3:
            spans.append(slice(middle - 1, middle + 2))
        gains = [_gain(groups[span], value_cost, price) for span in spans]
        best = spans[gains.index(max(gains))]
        if max(gains) <= 0:
            break
        groups[best] = [_joined(groups[best])]
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
    price: float,
    most: int,
) -> tuple[list[float], list[int]]:
    """Returns values with those split whose squared error outweighs the bits of telling their halves apart.

    Args:
        values: codebook, ascending.
        counts: members of each.
        errors: squared error of each.
        value_cost: price of one codebook value in the file.
        price: squared error per bit.
        most: values that the codebook may have.

    Returns:
        the new values, ascending, and for each the old code it comes from.
    """
    new: list[float] = []
    parents: list[int] = []
    room = most - len(values)
    for i, (value, count, error) in enumerate(zip(values, counts, errors, strict=True)):
        half = 0.5 * math.sqrt(3 * error / count) if count else 0.0  # a quarter of the width of a uniform cell
        worth = SPLIT_GAIN * error > value_cost + price * count
        if worth and room > 0 and half > 0 and abs(value) > half:
            new += [value - half, value + half]
            parents += [i, i]
            room -= 1
        else:
            new.append(value)
            parents.append(i)
    order = sorted(range(len(new)), key=new.__getitem__)
    return [new[i] for i in order], [parents[i] for i in order]
