"""How many values a codebook has: codes are merged and split where `error + price * bits` falls.

Two neighbouring codes with counts a and b and centroids d apart, merged, add a b / (a + b) d^2 of squared error (exact for
centroids) and save one codebook value and (a + b) H(a / (a + b)) bits of codes. A code that is split in half loses up to
three quarters of its squared error (a uniform cell) and pays one value and one bit per member. So nobody chooses a
number of codes: it follows from the price.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

# What splitting an interval in two takes away of its squared error: 1 - 1/4 for a uniform density.
SPLIT_GAIN = 0.75


def _choice_bits(a: float, b: float) -> float:
    """Returns (a + b) * H(a / (a + b)) in bits: what telling two codes apart costs their members."""
    total = a + b
    return -(a * math.log2(a / total) + b * math.log2(b / total))


def merge_codes(
    counts: Sequence[int], sums: Sequence[float], value_cost: float, price: float
) -> tuple[list[int], list[float]]:
    """Returns where each old code goes, and the new centroids.

    Greedy: the neighbouring pair (of one sign) that lowers `error + price * bits` most is merged, until none does.

    Args:
        counts: members of each code.
        sums: their sums.
        value_cost: price of one codebook value in the file.
        price: squared error per bit.

    Returns:
        for each old code its new number, from 1 (0 = zero: no members, or a mean of zero), and the means, ascending.
    """
    used = [i for i, count in enumerate(counts) if count and sums[i] != 0]
    groups = sorted(([i] for i in used), key=lambda g: sums[g[0]] / counts[g[0]])
    stats = [(counts[g[0]], sums[g[0]]) for g in groups]

    def gain(i: int) -> float:
        (a, s), (b, t) = stats[i], stats[i + 1]
        if s * t < 0:
            return -math.inf
        error = a * b / (a + b) * (s / a - t / b) ** 2
        return value_cost + price * _choice_bits(a, b) - error

    gains = [gain(i) for i in range(len(stats) - 1)]
    while gains:
        i = max(range(len(gains)), key=gains.__getitem__)
        if gains[i] <= 0:
            break
        groups[i : i + 2] = [groups[i] + groups[i + 1]]
        stats[i : i + 2] = [(stats[i][0] + stats[i + 1][0], stats[i][1] + stats[i + 1][1])]
        del gains[i]
        for j in (i - 1, i):
            if 0 <= j < len(gains):
                gains[j] = gain(j)
    place = [0] * len(counts)
    for number, group in enumerate(groups):
        for i in group:
            place[i] = number + 1
    return place, [s / a for a, s in stats]


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
