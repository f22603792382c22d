"""The static estimate of the entropy coder: what each weight of a tensor would cost in bits, given simple counts.

The artifact's coder adapts its probabilities while it writes. Inside a projection the same structure is modelled by
counts of the last assignment: a tensor is seen as a matrix [rows = first dimension, columns = the rest], the odds of a
nonzero at (r, c) are the odds of its row times the odds of its column over the odds of the whole, and a nonzero's code
costs minus the logarithm of its share. Everything is in bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Nonzeros that the average row or column lends to each one's own count: the coder has to learn densities, too.
PRIOR_NONZEROS = 1.0
# What a codebook value costs in the file (an 8-bit integer) and what a tensor costs before its first nonzero.
CODEBOOK_VALUE_BITS = 8.0
TENSOR_BITS = 48.0

Integers = NDArray[np.int64]
Floats = NDArray[np.floating[Any]]


def as_matrix(tensor: Tensor) -> Tensor:
    """Returns a tensor of two or more dimensions as [first dimension, everything else]."""
    return tensor.reshape(tensor.shape[0], -1)


@dataclass(frozen=True)
class CodeLengths:
    """Static code lengths of one tensor seen as [R, C] with a codebook of K values.

    Attributes:
        code_bits: float32 [K], bits of each code, given that the element is not zero.
        row_bits: float32 [R], a row's part of the log-odds against a nonzero.
        column_bits: float32 [C], a column's part; a nonzero at (r, c) costs row_bits[r] + column_bits[c]
            more than a zero.
    """

    code_bits: Tensor
    row_bits: Tensor
    column_bits: Tensor

    def position_bits(self) -> Tensor:
        """Returns [R, C]: how many bits more a nonzero costs than a zero; negative where zeros are rare."""
        return self.row_bits[:, None] + self.column_bits[None, :]

    def zero_bits(self) -> float:
        """Returns the bits of an all-zero tensor under these odds."""
        # Most rows have few nonzeros or none, and rows with equally many have equal odds: few sums differ.
        rows, row_counts = np.unique(self.row_bits.cpu().numpy(), return_counts=True)
        columns, column_counts = np.unique(self.column_bits.cpu().numpy(), return_counts=True)
        return _zero_bits(np.exp2(-rows.astype(float)), row_counts, np.exp2(-columns.astype(float)), column_counts)


@dataclass(frozen=True)
class Counts:
    """All that the estimate knows of an assignment.

    Attributes:
        rows, columns: int64 [R] and [C], nonzeros of each row and column.
        codes: int64 [K], elements of each code.
    """

    rows: Integers
    columns: Integers
    codes: Integers

    @property
    def nonzeros(self) -> int:
        """How many there are."""
        return int(self.rows.sum())

    @classmethod
    def of_codes(cls, codes: Tensor, size: int) -> Counts:
        """Counts a matrix of codes, [R, C], 0 for zero and 1..size for a codebook value."""
        flat = codes.flatten()
        index = flat.nonzero().flatten()
        code = flat[index].cpu().numpy().astype(np.int64) - 1
        row, column = np.divmod(index.cpu().numpy(), codes.shape[1])
        return cls.of_elements(row, column, code, codes.shape, size)

    @classmethod
    def of_elements(cls, row: Integers, column: Integers, code: Integers, shape: Sequence[int], size: int) -> Counts:
        """Counts nonzero elements of [R, C]: their rows, columns and codes in 0..size-1, int64 [m] each."""
        rows, columns = shape
        return cls(
            np.bincount(row, minlength=rows), np.bincount(column, minlength=columns), np.bincount(code, minlength=size)
        )


def _density(rows: int, columns: int, nonzeros: int) -> float:
    """Returns the share of nonzeros of a tensor, strictly between 0 and 1."""
    return (nonzeros + 0.5) / (rows * columns + 1.0)


def _odds(nonzeros: Integers, positions: int, density: float, prior: float) -> Floats:
    """Returns the odds [n] of a nonzero in rows or columns with so many nonzeros among so many positions."""
    share = (nonzeros + prior) / (positions + prior / density)
    odds: Floats = share / (1 - share)
    return odds


def _code_bits(codes: Integers) -> Floats:
    """Returns the bits [K] of each code, given how many elements have it."""
    shares = codes + 0.5
    bits: Floats = -np.log2(shares / max(float(shares.sum()), 1.0))
    return bits


def _zero_bits(row_odds: Floats, rows: Integers, column_odds: Floats, columns: Integers) -> float:
    """Returns the bits of an all-zero tensor; `rows` of its rows have odds `row_odds`, and columns alike."""
    return float(rows @ np.log2(1 + np.outer(row_odds, column_odds)) @ columns)


def _distinct(counts: Integers) -> tuple[Integers, Integers]:
    """Returns the distinct values of small integers >= 0, ascending, and how often each comes."""
    times = np.bincount(counts)
    values = np.flatnonzero(times)
    return values, times[values]


def estimate_code_lengths(counts: Counts, prior: float = PRIOR_NONZEROS) -> CodeLengths:
    """Returns the code lengths that fit an assignment.

    Args:
        counts: of the assignment.
        prior: pseudo-count of nonzeros per row and column.
    """
    rows, columns = counts.rows.size, counts.columns.size
    density = _density(rows, columns, counts.nonzeros)
    middle = math.log2((1 - density) / density)
    row_bits = -np.log2(_odds(counts.rows, columns, density, prior)) - middle
    column_bits = -np.log2(_odds(counts.columns, rows, density, prior))
    parts = (_code_bits(counts.codes), row_bits, column_bits)
    return CodeLengths(*(torch.from_numpy(part.astype(np.float32)) for part in parts))


def code_length(counts: Counts) -> float:
    """Returns the estimated bits of a tensor in the file: positions, codes and codebook.

    Cost: O(R + C + K) and one logarithm for each pair of a distinct row count and a distinct column count.
    """
    nonzeros = counts.nonzeros
    if not nonzeros:
        return TENSOR_BITS
    density = _density(counts.rows.size, counts.columns.size, nonzeros)
    row_counts, rows = _distinct(counts.rows)
    column_counts, columns = _distinct(counts.columns)
    row_odds = _odds(row_counts, counts.columns.size, density, PRIOR_NONZEROS) * ((1 - density) / density)
    column_odds = _odds(column_counts, counts.rows.size, density, PRIOR_NONZEROS)
    bits = _zero_bits(row_odds, rows, column_odds, columns)
    bits -= float((rows * row_counts) @ np.log2(row_odds) + (columns * column_counts) @ np.log2(column_odds))
    bits += float(counts.codes @ _code_bits(counts.codes))
    return bits + CODEBOOK_VALUE_BITS * counts.codes.size + TENSOR_BITS
