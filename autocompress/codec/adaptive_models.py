"""Adaptive models of small alphabets and of integers of any size up to 17 bits."""

from __future__ import annotations

import itertools
from functools import lru_cache

import numpy as np

from autocompress.codec.range_coder import ONE, Array, Coder, Codes, Floats

# Weight of one observation; the sum of the weights stays below 2**22, where constriction's 24 bits resolve it.
_OBSERVATION = 32
_LIMIT = 1 << 22
# How many observations the distribution over all contexts is worth in each context.
_BORROWED = 8
CONSTANTS = np.array([_OBSERVATION, _BORROWED, _LIMIT], np.int64)  # for compiled code
# An integer is coded as the number of its bits, its sign, and the bits below the leading one.
LENGTHS = 18


def blocks(count: int, size: int, part: int = 16) -> list[slice]:
    """Returns the blocks between `cuts`."""
    return [slice(a, b) for a, b in itertools.pairwise(cuts(count, size, part).tolist())]


@lru_cache(1024)
def cuts(count: int, size: int, part: int = 16) -> Array:
    """Returns where to cut `count` items of `size` elements, both ends too: blocks of 1/part of what came before.

    They have at least about 256 elements where items are smaller than that, and at most about a million.

    Counts are updated between blocks only, which costs little as the blocks are short where the counts are young.
    """
    ends = [0]
    first = max(1, 256 // size) if size > 1 else 1
    while ends[-1] < count:
        most = max(1, (1 << 20) // size)
        ends.append(min(count, ends[-1] + max(first, min(most, ends[-1] // part))))
    found = np.array(ends, np.int64)
    found.flags.writeable = False
    return found


class Symbols:
    """Adaptive distributions over 0..size-1 in several contexts, which borrow from their common distribution.

    Attributes:
        counts: int64 [contexts, size], observations.
    """

    def __init__(self, size: int, contexts: int = 1) -> None:
        self.counts = np.zeros((contexts, size), np.int64)

    def weights(self) -> Array:
        """Returns the integer weights [contexts, size] of the next symbol, all positive."""
        common: Array = 2 * self.counts.sum(0) + 1
        if len(self.counts) == 1:
            weights = common[None] * (_OBSERVATION // 2)
        else:
            borrowed = (common * (_OBSERVATION * _BORROWED)) // int(common.sum())
            weights = self.counts * _OBSERVATION + (borrowed + 1)
        totals = weights.sum(1, keepdims=True)
        if int(totals.max()) >= _LIMIT:
            weights = np.where(totals < _LIMIT, weights, weights * _LIMIT // totals + 1)
        return weights

    def code(self, coder: Coder, values: Array, contexts: Array | None = None) -> Array:
        """Codes one block of values [n] with contexts [n] and learns from it. Returns the values."""
        size = self.counts.shape[1]
        weights = self.weights()  # of all contexts before any is coded: their order must not matter
        if contexts is None:
            values = coder.symbols(weights[0], values)
            self.counts[0] += np.bincount(values, minlength=size)
            return values
        values = values.copy()
        for context in np.flatnonzero(np.bincount(contexts)):
            inside = contexts == context
            values[inside] = coder.symbols(weights[context], values[inside])
        self.counts += np.bincount(contexts * size + values, minlength=self.counts.size).reshape(self.counts.shape)
        return values

    def fade(self, keep: int | None = None) -> None:
        """Halves the counts, for a next tensor that may differ, or scales them to `keep` observations in all."""
        total = int(self.counts.sum())
        if keep is None:
            self.counts //= 2
        elif total > keep:
            self.counts = self.counts * keep // total


class Ordered:
    """Adaptive model of classes 0..size-1 in a natural order, of which 0 is special.

    A class that was seen makes its neighbours likelier too, so that few observations go a long way.
    """

    def __init__(self, size: int) -> None:
        self._zero = Symbols(2)
        self._weights = np.ones(max(1, size - 1), np.int64)

    def code(self, coder: Coder, values: Array) -> Array:
        """Codes one block of values [n]. Returns the values."""
        values = values.copy()
        live = self._zero.code(coder, (values > 0).astype(np.int64)) > 0
        values[~live] = 0
        weights = self._weights
        if len(weights) * int(weights.max()) > _LIMIT:
            weights = weights * _LIMIT // int(weights.sum()) + 1
        values[live] = coder.symbols(weights, values[live] - 1) + 1
        counts = np.bincount(values[live] - 1, minlength=len(self._weights))
        self._weights += 8 * counts
        self._weights[1:] += 4 * counts[:-1]
        self._weights[:-1] += 4 * counts[1:]
        return values


class Integers:
    """Adaptive model of integers below 2**17 in magnitude, in several contexts."""

    def __init__(self, contexts: int = 1, *, signed: bool = True) -> None:
        self._lengths = Symbols(LENGTHS, contexts)
        self._signs = Symbols(2) if signed else None

    def code(self, coder: Coder, values: Array, contexts: Array | None = None) -> Array:
        """Codes values [n] with contexts [n] (default: all 0). Returns the values."""
        if coder.compiled is not None:
            contexts = np.zeros(len(values), np.int64) if contexts is None else contexts
            signs = np.zeros((0, 2), np.int64) if self._signs is None else self._signs.counts
            ends = cuts(len(values), 1)
            return coder.compiled.code_integers(values, contexts, self._lengths.counts, signs, ends, CONSTANTS)
        values = values.copy()
        for block in blocks(len(values), 1):
            values[block] = self._code_block(coder, values[block], None if contexts is None else contexts[block])
        return values

    def _code_block(self, coder: Coder, values: Array, contexts: Array | None) -> Array:
        magnitudes = np.abs(values)
        lengths = np.frexp(magnitudes.astype(np.float64))[1].astype(np.int64)
        lengths = self._lengths.code(coder, lengths, contexts)
        magnitudes = magnitudes.copy()
        for length in np.unique(lengths):
            if length > 1:
                inside = lengths == length
                leading = 1 << (int(length) - 1)
                magnitudes[inside] = leading + coder.bits(int(length) - 1, magnitudes[inside] - leading)
        magnitudes = np.where(lengths == 1, 1, np.where(lengths == 0, 0, magnitudes))
        if self._signs is None:
            return magnitudes
        live = lengths > 0
        signs = np.zeros(len(values), np.int64)
        signs[live] = self._signs.code(coder, (values[live] < 0).astype(np.int64))
        return np.where(signs == 1, -magnitudes, magnitudes)

    def code_one(self, coder: Coder, value: int) -> int:
        return int(self.code(coder, np.array([value], np.int64))[0])

    def fade(self) -> None:
        self._lengths.fade()
        if self._signs is not None:
            self._signs.fade()


def fixed_point(odds: Floats) -> Array:
    """Returns the probabilities odds / (1 + odds) in units of 1 / ONE, kept away from 0 and 1."""
    share = 1.0 + odds
    np.divide(odds, share, out=share)
    scaled = np.multiply(share, ONE, out=share).astype(np.int64)
    return np.minimum(np.maximum(scaled, 1, out=scaled), ONE - 1, out=scaled)


_CONTEXTS = 5
# Codebooks of more values have one context.
_LARGE = 256
# Observations carried over to the next tensor with a codebook of the same size.
_KEPT = 64


def code_codes(coder: Coder, codes: Codes, integers: Array, last: Symbols | None) -> Symbols:
    """Codes the nonzeros of a tensor in place, row block by row block and tap by tap.

    The context of a nonzero is, in five steps from clearly negative to clearly positive, the weighted sum of its
    neighbours before it in the same kernel (2 above + 2 left + 1 on each upper diagonal); where there are no taps, the
    sum of its column so far.

    Args:
        coder: the stream.
        codes: int16 [R, G, H, W], 0 where there is no nonzero and 1..K elsewhere (any positive number when decoding).
        integers: the codebook [K] in units of its step, which tells large from small and the signs.
        last: the model after the tensor before; part of it is kept where that had as many values.

    Returns:
        The model after this tensor.
    """
    size = len(integers)
    model = Symbols(size, _CONTEXTS if size <= _LARGE else 1)
    if last is not None and last.counts.shape == model.counts.shape:
        model.counts = last.counts
        model.fade(_KEPT)
    if size > _LARGE:
        codes = codes.reshape(len(codes), -1, 1, 1)  # the same memory: without contexts, taps need no order
    rows, groups, height, width = codes.shape
    table = np.concatenate([np.zeros(1, np.int64), integers])
    # |sum| is clear when above about 2.5 mean magnitudes: 2 * |sum| * K > 5 * sum of magnitudes.
    clear = int(np.abs(integers).sum()) * 5 // (2 * len(integers))
    if coder.compiled is not None:
        ends = cuts(rows, groups * height * width)
        coder.compiled.code_tensor(codes, model.counts, table, ends, clear, CONSTANTS)
        return model
    spatial = height * width > 1
    columns = np.zeros((groups, height, width), np.int64)
    for block in blocks(rows, groups * height * width):
        part = codes[block]
        around = np.zeros((len(part), groups, height + 1, width + 2), np.int64)
        for i in range(height):
            for j in range(width):
                here = part[:, :, i, j]
                live = here > 0
                if not live.any():
                    continue
                if spatial:
                    total = 2 * (around[:, :, i, j + 1] + around[:, :, i + 1, j])
                    total = (total + around[:, :, i, j] + around[:, :, i, j + 2])[live]
                else:
                    total = np.broadcast_to(columns[:, i, j], live.shape)[live]
                context = np.sign(total) + np.sign(total) * (np.abs(total) > clear) + 2
                values = model.code(coder, here[live] - 1, context if size <= _LARGE else None) + 1
                here[live] = values
                around[:, :, i + 1, j + 1] = table[here]
        columns += table[part].sum(0)
    return model
