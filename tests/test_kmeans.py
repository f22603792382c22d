"""Scalar codebooks against the exact solver and brute force."""

import itertools

import pytest
import torch

from autocompress.errors import InvalidInputError
from autocompress.network.compressed_tensors import round_codebook
from autocompress.numerics.kmeans import encode, fit_codebook, fit_codebooks, sort_values

SIZES = [2**bit for bit in range(1, 9)]


def draw(seed: int, count: int) -> torch.Tensor:
    """Normal, heavy-tailed, or two-sided with a gap around zero, by the seed."""
    values = torch.randn(count, generator=torch.Generator().manual_seed(seed))
    return [values, values**3, values.sign() * (values.abs() + 0.5)][seed % 3]


def squared_error(values: torch.Tensor, centroids: torch.Tensor) -> float:
    return float((values.double()[:, None] - centroids[None]).square().min(1).values.sum())


def exact_error(values: torch.Tensor, k: int) -> float:
    """The oracle: the squared error of the best k intervals of the sorted distinct values, by dynamic programming."""
    points, counts = torch.unique(values.double(), return_counts=True)
    weights = torch.cat([torch.zeros(1), counts.double().cumsum(0)])
    sums = torch.cat([torch.zeros(1), (counts * points).cumsum(0)])
    squares = torch.cat([torch.zeros(1), (counts * points.square()).cumsum(0)])
    n = len(points)
    width = weights[None] - weights[:, None]
    errors = squares[None] - squares[:, None] - (sums[None] - sums[:, None]).square() / width
    errors = torch.where(width > 0, errors.clamp_min(0), torch.inf)
    best = errors[0]
    for _ in range(min(k, n) - 1):
        best = torch.minimum(best, (best[:, None] + errors).amin(0))
    return float(best[n])


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_exact_codebook_equals_brute_force(seed, k):
    values = draw(seed, 9).sort().values.double()
    cuts = itertools.combinations(range(1, 9), k - 1)
    parts = ([values[a:b] for a, b in itertools.pairwise([0, *cut, 9])] for cut in cuts)
    best = min(sum(float((part - part.mean()).square().sum()) for part in split) for split in parts)
    assert exact_error(values, k) == pytest.approx(best, rel=1e-9, abs=1e-12)
    book = fit_codebook(sort_values(values), k)  # so few values are solved exactly
    assert book.squared_error == pytest.approx(best, rel=1e-9, abs=1e-12)
    assert squared_error(values, book.centroids) == pytest.approx(best, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("count", "sizes", "excess"), [(200, SIZES[:6], 1e-9), (500, SIZES[:5], 0.02)])
def test_lloyd_is_near_the_exact_optimum(seed, count, sizes, excess):
    data = sort_values(draw(seed, count))
    for size, book in zip(sizes, fit_codebooks(data, sizes), strict=True):
        best = exact_error(data.values, size)
        assert best * (1 - 1e-9) <= book.squared_error <= best * (1 + excess) + 1e-12
        assert squared_error(data.values, book.centroids) <= book.squared_error * (1 + 1e-9) + 1e-12


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("count", [1, 2, 5, 70, 3000])
def test_error_never_rises_with_the_size(seed, count):
    errors = [book.squared_error for book in fit_codebooks(sort_values(draw(seed, count)), SIZES)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == 0 or count > 256


def test_fewer_distinct_values_than_the_size_are_kept_as_they_are():
    values = torch.tensor([3.0, -1.0, 3.0, 0.5, -1.0])
    for size in (3, 4, 8):
        book = fit_codebook(sort_values(values), size)
        assert book.squared_error == 0
        assert book.centroids.tolist() == [-1.0, 0.5, 3.0]


@pytest.mark.parametrize("seed", range(3))
def test_warm_start_follows_moved_values(seed):
    values = draw(seed, 3000)
    starts = [book.centroids for book in fit_codebooks(sort_values(values), SIZES)]
    moved = sort_values(values + 0.01 * draw(seed + 30, 3000))
    for warm, cold in zip(fit_codebooks(moved, SIZES, starts), fit_codebooks(moved, SIZES), strict=True):
        assert warm.squared_error <= 1.1 * cold.squared_error


def test_bad_warm_start_is_repaired():
    data = sort_values(draw(1, 500))
    for start in ([100.0] * 8, [-50.0, 50.0], [0.0]):  # empty clusters, and fewer values than asked for
        book = fit_codebook(data, 8, torch.tensor(start))
        assert book.centroids.numel() == 8
        assert book.squared_error <= 2 * exact_error(data.values, 8)


def test_constant_and_repeated_values():
    assert fit_codebook(sort_values(torch.full((1000,), 0.25)), 4).centroids.tolist() == [0.25]
    values = torch.tensor([0.0, 1.0, 5.0]).repeat_interleave(torch.tensor([500, 500, 1]))
    book = fit_codebook(sort_values(values), 2)
    assert book.squared_error == pytest.approx(exact_error(values, 2))


@pytest.mark.parametrize(("count", "size"), [(0, 2), (3, 0)])
def test_nothing_to_fit_is_an_error(count, size):
    with pytest.raises(InvalidInputError, match=f"{count} values and sizes"):
        fit_codebook(sort_values(torch.zeros(count)), size)


def test_encode_takes_the_nearest_value_and_drops_unused_ones():
    target = torch.tensor([[0.9, 0.0, -1.1], [0.2, 5.0, -0.9]])
    mask = torch.tensor([[True, False, True], [False, False, True]])
    coded = encode(target, mask, torch.tensor([-1.0, 1.0, 127.0]))
    assert coded.codes.tolist() == [[2, 0, 1], [0, 0, 1]]
    assert coded.values.tolist() == pytest.approx([-1.0, 1.0], rel=4e-3)  # a codebook's step has 8 significant bits
    assert torch.equal(round_codebook(coded.values), coded.values)
    assert torch.equal(encode(coded.dense(), mask, coded.values).dense(), coded.dense())


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("size", [1, 2, 5, 127, 128, 256])
def test_encoded_values_are_as_the_file_holds_them(seed, size):
    target = draw(seed, 600)
    coded = encode(target, torch.ones(600, dtype=torch.bool), fit_codebook(sort_values(target), size).centroids)
    assert coded.values.numel() == coded.codes.unique().numel() <= size
    assert torch.equal(round_codebook(coded.values), coded.values)
