"""Codebooks of whole kernels: one code for k x k weights, after Kernel Quantization (Yu et al. 2020).

A tensor is cut into vectors of consecutive elements: the kernels of a convolution, or groups of inputs of a linear
layer. Each vector has a code into a codebook of K vectors, whose entries are themselves of 6 bits: integer levels times
one step. A zero kernel is a codeword like any other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

ENTRY_BITS = 6
# Levels are in [-31, 31]: symmetric, so that the sign of a kernel does not matter.
TOP_LEVEL = 2 ** (ENTRY_BITS - 1) - 1
MAX_CODEWORDS = 2**12
# The largest kernel with a codebook of its own is 16 x 16.
MAX_LENGTH = 256


def kernel_code_bits(vectors: int, codewords: int, length: int) -> int:
    """Returns the bits of N vectors of d elements in K codewords: N ceil(log2 K) + 6 K d (Yu et al. 2020)."""
    return vectors * index_bits(codewords) + ENTRY_BITS * codewords * length


def index_bits(choices: int) -> int:
    """Returns the width of an index into so many choices: ceil(log2), 0 where there is none to make."""
    return max(0, choices - 1).bit_length()


def round_to_bfloat16(value: float) -> float:
    """Returns the nearest bfloat16 number, at least the smallest normal one."""
    return max(float(torch.tensor(value, dtype=torch.float32).to(torch.bfloat16)), 2.0**-126)


@dataclass(frozen=True)
class KernelTensor:
    """A tensor whose vectors of d consecutive elements are each one of the K of its codebook.

    Attributes:
        codes: int16 [N], each in 0..K-1, in the order of the vectors in memory.
        levels: int16 [K, d], each in [-31, 31].
        step: float32 scalar exactly representable in bfloat16, > 0.
        shape: of the parameter, N d elements.
    """

    codes: Tensor
    levels: Tensor
    step: float
    shape: tuple[int, ...]

    @property
    def values(self) -> Tensor:
        """The codebook, float32 [K, d]."""
        return self.levels.to(torch.float32) * self.step

    def dense(self) -> Tensor:
        """Returns the tensor itself, float32."""
        return self.values[self.codes.long()].reshape(self.shape)

    def cpu(self) -> KernelTensor:
        return KernelTensor(self.codes.cpu(), self.levels.cpu(), self.step, self.shape)

    @property
    def length(self) -> int:
        """Elements that share one code."""
        return self.levels.shape[1]

    @property
    def codewords(self) -> int:
        """Size of the codebook."""
        return self.levels.shape[0]

    @property
    def nonzeros(self) -> int:
        return int(torch.count_nonzero(self.levels, dim=1)[self.codes.long()].sum())

    @property
    def bits(self) -> int:
        """Width of the code of a vector: ceil(log2 K)."""
        return index_bits(self.codewords)

    @property
    def weight_data_bits(self) -> int:
        """Bits of the codes and of the codebook, as Yu et al. (2020) count them."""
        return kernel_code_bits(self.codes.numel(), self.codewords, self.length)


def kernel_levels(values: Tensor) -> tuple[Tensor, float]:
    """Returns (levels int16 [K, d], step): codebook values as the file will reproduce them.

    The largest magnitude lands on the largest level, so that rounding twice is rounding once.
    """
    step = round_to_bfloat16(float(values.abs().max()) / TOP_LEVEL if values.numel() else 0.0)
    return (values.float() / step).round().clamp(-TOP_LEVEL, TOP_LEVEL).to(torch.int16), step


def kernel_tensor(codes: Tensor, values: Tensor, shape: tuple[int, ...]) -> KernelTensor:
    """Returns a kernel tensor of any codes and values: values rounded, equal and unused ones closed up, in order.

    Args:
        codes: integers [N] in 0..K-1.
        values: float [K, d].
        shape: of the parameter, N d elements.
    """
    used, place = torch.unique(codes.long(), return_inverse=True)
    levels, step = kernel_levels(values[used])
    distinct, merged = torch.unique(levels, dim=0, return_inverse=True)
    return KernelTensor(merged[place].to(torch.int16), distinct, step, tuple(shape))


def vector_lengths(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the lengths of the vectors that a parameter of this shape may be cut into; none where it stays scalar.

    A convolution has its kernels; a 1 x 1 convolution, linear layer or embedding has groups of 4 or 8 inputs.
    """
    kernel = math.prod(shape[2:])
    if kernel > 1:
        return (kernel,) if kernel <= MAX_LENGTH else ()
    return tuple(length for length in (4, 8) if len(shape) > 1 and shape[1] and shape[1] % length == 0)
