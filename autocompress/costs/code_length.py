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

import torch
from torch import Tensor

# Nonzeros that the average row or column lends to each one's own count: the coder has to learn densities, too.
PRIOR_NONZEROS = 1.0
# What a codebook value costs in the file (an 8-bit integer) and what a tensor costs before its first nonzero.
CODEBOOK_VALUE_BITS = 8.0
TENSOR_BITS = 48.0


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
        rows, row_counts = torch.unique(self.row_bits, return_counts=True)
        columns, column_counts = torch.unique(self.column_bits, return_counts=True)
        odds = rows.double()[:, None] + columns.double()[None, :]
        each = torch.nn.functional.softplus(-odds * math.log(2)) / math.log(2)
        return float(row_counts.double() @ each @ column_counts.double())


@dataclass(frozen=True)
class Counts:
    """All that the estimate knows of an assignment.

    Attributes:
        rows, columns: int64 [R] and [C], nonzeros of each row and column.
        codes: int64 [K], elements of each code.
    """

    rows: Tensor
    columns: Tensor
    codes: Tensor

    @classmethod
    def of_codes(cls, codes: Tensor, size: int) -> Counts:
        """Counts a matrix of codes, [R, C], 0 for zero and 1..size for a codebook value."""
        index = codes.flatten().nonzero().flatten()
        return cls.of_elements(index, codes.flatten()[index].long() - 1, codes.shape, size)

    @classmethod
    def of_elements(cls, index: Tensor, code: Tensor, shape: Sequence[int], size: int) -> Counts:
        """Counts nonzero elements: flat indices int64 [m] into [R, C] and codes int64 [m] in 0..size-1."""
        rows, columns = shape
        return cls(
            torch.bincount(index // columns, minlength=rows),
            torch.bincount(index % columns, minlength=columns),
            torch.bincount(code, minlength=size),
        )


def _logit_bits(density: Tensor) -> Tensor:
    return torch.log2((1 - density) / density)


def estimate_code_lengths(counts: Counts, prior: float = PRIOR_NONZEROS) -> CodeLengths:
    """Returns the code lengths that fit an assignment.

    Args:
        counts: of the assignment.
        prior: pseudo-count of nonzeros per row and column.
    """
    rows, columns = counts.rows.numel(), counts.columns.numel()
    density = (float(counts.rows.sum()) + 0.5) / (rows * columns + 1.0)
    row_density = (counts.rows.float() + prior) / (columns + prior / density)
    column_density = (counts.columns.float() + prior) / (rows + prior / density)
    middle = math.log2((1 - density) / density)
    shares = counts.codes.float() + 0.5
    return CodeLengths(
        code_bits=-torch.log2(shares / shares.sum().clamp(min=1.0)),
        row_bits=_logit_bits(row_density) - middle,
        column_bits=_logit_bits(column_density),
    )


def code_length(counts: Counts) -> float:
    """Returns the estimated bits of a tensor in the file: positions, codes and codebook."""
    if not bool(counts.rows.any()):
        return TENSOR_BITS
    lengths = estimate_code_lengths(counts)
    bits = lengths.zero_bits()
    for each, count in (
        (lengths.row_bits, counts.rows),
        (lengths.column_bits, counts.columns),
        (lengths.code_bits, counts.codes),
    ):
        bits += float(each.double() @ count.double())
    return bits + CODEBOOK_VALUE_BITS * counts.codes.numel() + TENSOR_BITS
