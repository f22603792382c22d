"""The static estimate of the entropy coder: what each weight of a tensor would cost in bits, given simple counts.

The artifact's coder adapts its probabilities while it writes. Inside a projection the same structure is modelled by
counts of the last assignment: a tensor is seen as a matrix [rows = first dimension, columns = the rest], the odds of a
nonzero at (r, c) are the odds of its row times the odds of its column over the odds of the whole, and a nonzero's code
costs minus the logarithm of its share. Everything is in bits.
"""

from __future__ import annotations

import math
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
        return float(torch.nn.functional.softplus(-self.position_bits() * math.log(2)).sum() / math.log(2))


def _logit_bits(density: Tensor) -> Tensor:
    return torch.log2((1 - density) / density)


def estimate_code_lengths(codes: Tensor, size: int, prior: float = PRIOR_NONZEROS) -> CodeLengths:
    """Returns the code lengths that fit an assignment.

    Args:
        codes: integer [R, C], 0 for zero and 1..size for a codebook value.
        size: K, the number of codebook values.
        prior: pseudo-count of nonzeros per row and column.
    """
    rows, columns = codes.shape
    nonzero = codes != 0
    total = float(nonzero.sum())
    density = (total + 0.5) / (rows * columns + 1.0)
    row_density = (nonzero.sum(1).float() + prior) / (columns + prior / density)
    column_density = (nonzero.sum(0).float() + prior) / (rows + prior / density)
    middle = math.log2((1 - density) / density)
    shares = torch.bincount(codes.flatten().long(), minlength=size + 1)[1 : size + 1].float() + 0.5
    return CodeLengths(
        code_bits=-torch.log2(shares / shares.sum().clamp(min=1.0)),
        row_bits=_logit_bits(row_density) - middle,
        column_bits=_logit_bits(column_density),
    )


def code_length(codes: Tensor, size: int) -> float:
    """Returns the estimated bits of a tensor in the file: positions, codes and codebook. `codes` is [R, C]."""
    if size == 0 or not bool((codes != 0).any()):
        return TENSOR_BITS
    lengths = estimate_code_lengths(codes, size)
    nonzero = codes != 0
    bits = lengths.zero_bits() + float(lengths.position_bits()[nonzero].sum())
    bits += float(lengths.code_bits[codes[nonzero].long() - 1].sum())
    return bits + CODEBOOK_VALUE_BITS * size + TENSOR_BITS
