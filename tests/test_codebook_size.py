"""Merging and splitting codes: the gains are those of error + price * bits, counted anew."""

from __future__ import annotations

import math
import random

import pytest

from autocompress.constraints.rate_distortion.codebooks import SPLIT_GAIN, _gain, _Group, merge_codes, split_codes


def objective(members: list[list[float]], zeros: list[float], value_cost: float, price: float) -> float:
    """Returns error + price * bits of an assignment; `zeros` are the elements that stand at zero."""
    error = sum(x * x for x in zeros)
    for group in members:
        mean = sum(group) / len(group)
        error += sum((x - mean) ** 2 for x in group)
    counts = [len(group) for group in members] + [len(zeros)]
    total = sum(counts)
    bits = sum(count * math.log2(total / count) for count in counts if count)
    return error + value_cost * len(members) + price * bits


def random_groups(seed: int) -> tuple[list[list[float]], list[float]]:
    rng = random.Random(seed)
    middles = sorted(rng.uniform(-2, 2) for _ in range(rng.randint(2, 6)))
    members = [[rng.gauss(middle, 0.1) for _ in range(rng.randint(1, 12))] for middle in middles]
    return members, [rng.gauss(0, 0.05) for _ in range(rng.randint(0, 30))]


@pytest.mark.parametrize("seed", range(30))
def test_the_gain_of_a_merger_is_what_counting_anew_gives(seed: int) -> None:
    members, zeros = random_groups(seed)
    cost, price = 0.1, 0.03
    groups = [_Group([i], len(group), sum(group)) for i, group in enumerate(members)]
    zero = _Group([], len(zeros), sum(zeros), is_zero=True)
    # The elements at zero are known by their number alone, and they do not move.
    before = objective(members, zeros, cost, price)
    pair = objective([members[0] + members[1], *members[2:]], zeros, cost, price)
    assert _gain(groups[:2], cost, price) == pytest.approx(before - pair)
    dropped = objective(members[1:], zeros + members[0], cost, price)
    assert _gain([groups[0], zero], cost, price) == pytest.approx(before - dropped)
    three = objective(members[2:], members[0] + zeros + members[1], cost, price)
    assert _gain([groups[0], zero, groups[1]], cost, price) == pytest.approx(before - three)


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("price", [0.0, 1e-3, 0.05, 1.0, 100.0])
def test_merging_never_raises_the_objective_and_keeps_one_value(seed: int, price: float) -> None:
    members, zeros = random_groups(seed)
    cost = 8 * price
    counts, sums = [len(group) for group in members], [sum(group) for group in members]
    place, means = merge_codes(counts, sums, len(zeros), cost, price)
    merged: list[list[float]] = [[] for _ in means]
    left = list(zeros)
    for group, number in zip(members, place, strict=True):
        (merged[number - 1] if number else left).extend(group)
    assert means
    assert means == sorted(means)
    assert means == pytest.approx([sum(group) / len(group) for group in merged])
    assert objective(merged, left, cost, price) <= objective(members, zeros, cost, price) + 1e-9
    if price == 0:
        assert len(means) == len(members)
    if price == 100:
        assert len(means) == 1


def test_no_better_merger_is_left() -> None:
    members, zeros = random_groups(7)
    counts, sums = [len(group) for group in members], [sum(group) for group in members]
    place, means = merge_codes(counts, sums, len(zeros), 0.8, 0.1)
    again, same = merge_codes(
        [sum(c for c, p in zip(counts, place, strict=True) if p == k + 1) for k in range(len(means))],
        [sum(s for s, p in zip(sums, place, strict=True) if p == k + 1) for k in range(len(means))],
        len(zeros) + sum(c for c, p in zip(counts, place, strict=True) if not p),
        0.8,
        0.1,
    )
    assert again == list(range(1, len(means) + 1))
    assert same == pytest.approx(means)


@pytest.mark.parametrize("counts", [[0, 3, 0], [3, 0, 2], [0, 0, 1]])
def test_codes_without_members_go(counts: list[int]) -> None:
    place, means = merge_codes(counts, [float(c * (i + 1)) for i, c in enumerate(counts)], 5, 0.0, 0.0)
    used = [i for i, count in enumerate(counts) if count]
    assert means == pytest.approx([i + 1.0 for i in used])
    assert [place[i] for i in used] == list(range(1, len(used) + 1))


def test_the_last_value_stays_whatever_it_costs() -> None:
    assert merge_codes([1], [1e-6], 1000, 1e6, 1e6) == ([1], [1e-6])
    assert merge_codes([], [], 10, 1.0, 1.0) == ([], [])


def test_a_code_is_split_where_its_error_outweighs_the_bits() -> None:
    count, value_cost, price = 10, 2.0, 0.5
    worth = (value_cost + price * count) / SPLIT_GAIN
    values, parents = split_codes([1.0, 5.0], [count, count], [worth * 0.99, worth * 1.01], value_cost, price, 255)
    half = 0.5 * math.sqrt(3 * worth * 1.01 / count)
    assert values == pytest.approx([1.0, 5.0 - half, 5.0 + half])
    assert parents == [0, 1, 1]


def test_splitting_a_uniform_cell_takes_three_quarters_of_its_error() -> None:
    x = [i / 1000 + 0.0005 for i in range(1000)]
    error = sum((v - 0.5) ** 2 for v in x)
    values, _ = split_codes([0.5], [1000], [error], 0.0, 0.0, 255)
    assert values == pytest.approx([0.25, 0.75], abs=1e-3)
    after = sum(min((v - c) ** 2 for c in values) for v in x)
    assert error - after == pytest.approx(SPLIT_GAIN * error, rel=1e-2)


def test_splits_stop_at_the_largest_codebook_and_never_cross_zero() -> None:
    values, parents = split_codes([1.0, 2.0, 3.0], [4, 4, 4], [0.1] * 3, 0.0, 0.0, 4)
    assert parents == [0, 0, 1, 2]
    assert values == sorted(values)
    assert split_codes([0.1], [4], [9.0], 0.0, 0.0, 255) == ([0.1], [0])
    assert split_codes([1.0], [0], [0.0], 0.0, 0.0, 255) == ([1.0], [0])
