"""The coder of `range_coder`, with the models of positions and codes, compiled: the same stream at the speed of memory.

`range_coder`, `positions` and `adaptive_models` say what a stream is. Here the same is written element by element for
numba, where numpy would walk each block many times over: same integers, same float64 operations in the same order, so
that either side decodes what the other has written, bit for bit. It pays from about a hundred thousand elements, as
loading the compiled code takes a good part of a second (and compiling it, once on a machine, some ten).

The range coder is that of constriction's `RangeEncoder`: 64 bits of state, words of 32, probabilities of 24.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from autocompress.codec.range_coder import ONE, Array, Codes, Flags, Floats, roundest, words_of
from autocompress.errors import CorruptArtifactError

if TYPE_CHECKING:
    F = TypeVar("F", bound=Callable[..., Any])

    def kernel(function: F) -> F:
        """Compiles what Python calls, here and wherever else numpy is too slow."""

    def helper(function: F) -> F:
        """Compiles what kernels call."""

else:
    import numba

    if numba.config.DISABLE_JIT:
        raise ImportError("numba is told not to compile, and without it numpy is faster")

    # No fast math: a probability is the same number on every machine. Division by zero as in numpy.
    _OPTIONS = {"cache": True, "error_model": "numpy"}
    kernel = numba.njit(**_OPTIONS)
    helper = numba.njit(**_OPTIONS, no_cpython_wrapper=True, no_cfunc_wrapper=True)

Words = NDArray[np.uint32]
State = NDArray[np.uint64]

ENCODE, DECODE, MEASURE = 0, 1, 2
# Places in the state. A decoder keeps how far its point is above `lower`; a stream that no encoder wrote is _DAMAGED.
_LOWER, _WIDTH, _WRITTEN, _POINT, _DAMAGED = 0, 1, 2, 3, 4
_PRECISION = np.uint64(24)
_WHOLE = 1 << 24
_SHIFT = np.uint64(32)
_RENORM = np.uint64(1 << 32)
_TOP = np.uint32(0xFFFFFFFF)
# A product of probabilities is turned into bits before it may be too small for a float64.
_SMALL = 2.0**-900


# Array expressions would take seconds to compile: these loops do not.
@helper
def _fill(array: Any, value: int) -> None:
    for i in range(len(array)):
        array[i] = value


@helper
def _add(array: Any, other: Any) -> None:
    for i in range(len(array)):
        array[i] += other[i]


@helper
def _sum(array: Any) -> Any:
    total = np.int64(0)
    for i in range(len(array)):
        total += array[i]
    return total


@helper
def _carry(words: Words, written: Any) -> None:
    """Adds one to the number that has been written."""
    at = np.int64(written) - 1
    while words[at] == _TOP:
        words[at] = 0
        at -= 1
    words[at] += np.uint32(1)


@helper
def _left_of_one(probability: Any) -> Any:
    """Returns where the interval of a flag that is 1 begins, of 2**24, as constriction rounds it."""
    return np.uint64((((ONE - np.int64(probability)) * (_WHOLE - 2)) >> 20) + 1)


@helper
def _encode_flags(words: Words, state: State, probabilities: Any, values: Any) -> None:
    lower, width, written = state[_LOWER], state[_WIDTH], state[_WRITTEN]
    for i in range(len(values)):
        scale = width >> _PRECISION
        split = scale * _left_of_one(probabilities[i])
        if values[i]:
            lower += split
            if lower < split:
                _carry(words, written)
            width = (scale << _PRECISION) - split
        else:
            width = split
        if width < _RENORM:
            words[written] = np.uint32(lower >> _SHIFT)
            written += np.uint64(1)
            lower <<= _SHIFT
            width <<= _SHIFT
    state[_LOWER], state[_WIDTH], state[_WRITTEN] = lower, width, written


@helper
def _decode_flags(words: Words, state: State, probabilities: Any, values: Any) -> None:
    point, width, read = state[_POINT], state[_WIDTH], state[_WRITTEN]
    count = np.uint64(len(words))
    for i in range(len(values)):
        scale = width >> _PRECISION
        split = scale * _left_of_one(probabilities[i])
        if point >= split:
            values[i] = 1
            point -= split
            width = (scale << _PRECISION) - split
            if point >= width:
                state[_DAMAGED] = 1
                return
        else:
            values[i] = 0
            width = split
        if width < _RENORM:
            width <<= _SHIFT
            point <<= _SHIFT
            if read < count:
                point |= np.uint64(words[read])
            read += np.uint64(1)
    state[_POINT], state[_WIDTH], state[_WRITTEN] = point, width, read


@helper
def _measure_flags(measured: Floats, probabilities: Any, values: Any) -> None:
    product = measured[1]
    for i in range(len(values)):
        likely = np.int64(probabilities[i])
        product *= (likely if values[i] else ONE - likely) * (1.0 / ONE)
        if product < _SMALL:
            measured[0] -= np.log2(product)
            product = 1.0
    measured[1] = product


@helper
def _bits_of_zeros(probabilities: Any) -> Any:
    """Returns the bits of flags [n] that are all zero."""
    total, product = 0.0, 1.0
    for i in range(len(probabilities)):
        product *= (ONE - probabilities[i]) * (1.0 / ONE)
        if product < _SMALL:
            total -= np.log2(product)
            product = 1.0
    return total - np.log2(product)


@helper
def _measure_ones(measured: Floats, probabilities: Any, values: Any) -> None:
    """Measures what the flags [n] that are one cost more than zeros."""
    product = measured[1]
    for i in range(len(values)):
        if values[i]:
            product *= probabilities[i] / (ONE - probabilities[i])
            if not _SMALL < product < 1 / _SMALL:
                measured[0] -= np.log2(product)
                product = 1.0
    measured[1] = product


@kernel
def code_flags(mode: int, words: Words, state: State, measured: Floats, probabilities: Any, values: Any) -> None:
    """Codes flags [n] in place, each 1 with its probability [n] of ONE."""
    if mode == ENCODE:
        _encode_flags(words, state, probabilities, values)
    elif mode == DECODE:
        _decode_flags(words, state, probabilities, values)
    else:
        _measure_flags(measured, probabilities, values)


@helper
def _encode_one(words: Words, state: State, left: Any, right: Any) -> None:
    scale = state[_WIDTH] >> _PRECISION
    step = scale * np.uint64(left)
    lower = state[_LOWER] + step
    if lower < step:
        _carry(words, state[_WRITTEN])
    width = scale * np.uint64(right - left)
    if width < _RENORM:
        words[state[_WRITTEN]] = np.uint32(lower >> _SHIFT)
        state[_WRITTEN] += np.uint64(1)
        lower <<= _SHIFT
        width <<= _SHIFT
    state[_LOWER], state[_WIDTH] = lower, width


@helper
def _quantile(state: State) -> Any:
    """Returns the quantile of the next symbol, of 2**24; a larger one says that the stream is damaged."""
    return np.int64(state[_POINT] // (state[_WIDTH] >> _PRECISION))


@helper
def _decode_one(words: Words, state: State, left: Any, right: Any) -> None:
    scale = state[_WIDTH] >> _PRECISION
    point = state[_POINT] - scale * np.uint64(left)
    width = scale * np.uint64(right - left)
    if width < _RENORM:
        width <<= _SHIFT
        point <<= _SHIFT
        if state[_WRITTEN] < np.uint64(len(words)):
            point |= np.uint64(words[state[_WRITTEN]])
        state[_WRITTEN] += np.uint64(1)
    state[_POINT], state[_WIDTH] = point, width


@helper
def _cumulative(weights: Any, into: Any) -> None:
    """Fills in where the interval of each symbol begins, of 2**24 [K + 1], as constriction rounds it."""
    size = len(weights)
    total = np.int64(0)
    for i in range(size):
        total += weights[i]
    scale = (_WHOLE - size) / np.float64(total)
    before = np.int64(0)
    for i in range(size):
        into[i] = np.int64(np.float64(before) * scale) + i
        before += weights[i]
    into[size] = _WHOLE


@helper
def _code_symbol(
    mode: int, words: Words, state: State, measured: Floats, weights: Any, total: Any, edges: Any, value: Any
) -> Any:
    """Codes one symbol with weights [K] of a total, whose intervals have these edges. Returns it."""
    if mode == MEASURE:
        measured[1] *= weights[value] / total
        if measured[1] < _SMALL:
            measured[0] -= np.log2(measured[1])
            measured[1] = 1.0
        return value
    if mode == DECODE:
        quantile = _quantile(state)
        if quantile >= _WHOLE:
            state[_DAMAGED] = 1
            return 0
        value, last = 0, len(edges) - 1
        while last - value > 1:
            middle = (value + last) // 2
            if edges[middle] <= quantile:
                value = middle
            else:
                last = middle
        _decode_one(words, state, edges[value], edges[value + 1])
        return value
    _encode_one(words, state, edges[value], edges[value + 1])
    return value


@kernel
def code_symbols(mode: int, words: Words, state: State, measured: Floats, weights: Any, values: Any) -> None:
    """Codes symbols [n] in place, all with the same weights [K], K > 1."""
    edges = np.empty(len(weights) + 1, np.int64)
    _cumulative(weights, edges)
    total = np.float64(_sum(weights))
    for i in range(len(values)):
        values[i] = _code_symbol(mode, words, state, measured, weights, total, edges, values[i])
        if state[_DAMAGED]:
            return


@helper
def _code_number(mode: int, words: Words, state: State, measured: Floats, count: int, value: Any) -> Any:
    """Codes a number of so many bits, all equally likely. Returns it."""
    if mode == MEASURE:
        measured[0] += count
        return value
    shift = 24 - count
    if mode == DECODE:
        value = _quantile(state) >> shift
        if value >= 1 << count:
            state[_DAMAGED] = 1
            return 0
        _decode_one(words, state, value << shift, (value + 1) << shift)
    else:
        _encode_one(words, state, value << shift, (value + 1) << shift)
    return value


@kernel
def code_bits(mode: int, words: Words, state: State, measured: Floats, count: int, values: Any) -> None:
    """Codes numbers [n] of so many bits in place."""
    for i in range(len(values)):
        values[i] = _code_number(mode, words, state, measured, count, values[i])
        if state[_DAMAGED]:
            return


@helper
def _fixed_point(odds: Any) -> Any:
    """Returns odds / (1 + odds) in units of 1 / ONE, as `adaptive_models.fixed_point`."""
    return min(max(np.int32(odds / (1.0 + odds) * ONE), np.int32(1)), np.int32(ONE - 1))


@helper
def _scale(odds: Floats, wanted2: int) -> None:
    """Rescales odds [C] in place so that about wanted2 / 2 nonzeros are expected, as `positions._scaled`."""
    columns = len(odds)
    wanted = wanted2 / 2
    for _ in range(2):
        units = np.int64(0)
        for c in range(columns):
            units += _fixed_point(odds[c])
        expected = min(max(units / ONE, 1e-3), columns - 1e-3)
        factor = wanted * (columns - expected) / ((columns - wanted) * expected)
        for c in range(columns):
            odds[c] *= factor
    for c in range(columns):
        odds[c] = min(max(odds[c], 2.0**-24), 2.0**24)


@helper
def _odds_ratio(seen: Any, expected: Any, total: Any, prior: Any) -> Any:
    """Returns how much more likely nonzeros were than expected, as `positions.odds_ratio`."""
    return (seen + prior) / (expected + prior) * ((total - expected + prior) / (total - seen + prior))


@kernel
def code_positions(
    mode: int,
    words: Words,
    state: State,
    measured: Floats,
    mask: Any,
    classes: Array,
    wanted2: Array,
    cuts: Array,
    group_start: Array,
    priors: Floats,
    neighbours: bool,
    near: tuple[Array, Array, Array],
) -> None:
    """Codes the flags of rows [L, G, H, W] in place, as `positions.code_flags`.

    Args:
        mode, words, state, measured: of the coder.
        mask: int8, the live rows.
        classes: [L].
        wanted2: twice the nonzeros expected in a row of each class.
        cuts: first rows of the blocks, and L.
        group_start: [G].
        priors: of columns, groups, taps and neighbourhoods.
        neighbours: whether taps are coded in the context of those before.
        near: seen, expected and total [9] of `PositionModels`, updated.
    """
    near_seen, near_expected, near_total = near
    rows, groups, height, width = mask.shape
    taps = height * width
    columns = groups * taps
    flat = mask.reshape(rows, columns)
    start_sum = _sum(group_start)
    group_counts, tap_counts = np.zeros(groups, np.int64), np.zeros(taps, np.int64)
    column_counts, column_expected = np.zeros(columns, np.int64), np.zeros(columns, np.int64)
    seen_rows, nonzeros2 = 0, 0
    base, weights = np.empty(columns), np.empty(columns)
    slot_of_class = np.empty(len(wanted2), np.int64)
    most = 0
    for block in range(len(cuts) - 1):
        most = max(most, cuts[block + 1] - cuts[block])
    slots = min(most, len(wanted2))
    tapwise = neighbours and taps > 1
    odds = np.empty((slots if tapwise else 1, columns))
    plain = np.empty((slots, columns), np.int32)
    zero_bits = np.empty(slots)
    around = np.zeros((most if tapwise else 0, groups, height + 1, width + 2), np.int8)
    probabilities, values, contexts = np.empty(groups, np.int32), np.empty(groups, np.int8), np.empty(groups, np.int8)
    factors, add_seen, add_expected, add_total = (
        np.empty(9),
        np.zeros(9, np.int64),
        np.zeros(9, np.int64),
        np.zeros(9, np.int64),
    )
    for block in range(len(cuts) - 1):
        first, last = cuts[block], cuts[block + 1]
        # The factors learned from the rows before.
        for t in range(taps):
            tap = _odds_ratio(np.float64(tap_counts[t]), nonzeros2 / 2 / taps, seen_rows * groups, priors[2])
            for g in range(groups):
                group = group_start[g] / 256.0
                if taps > 1:
                    mean = min(nonzeros2 / 2 * (group_start[g] / start_sum), np.float64(seen_rows * taps))
                    group = group * _odds_ratio(np.float64(group_counts[g]), mean, seen_rows * taps, priors[1])
                base[g * taps + t] = group * tap
        for c in range(columns):
            column = _odds_ratio(np.float64(column_counts[c]), column_expected[c] / ONE, seen_rows, priors[0])
            weights[c] = min(max(base[c] * column, 2.0**-20), 2.0**20)
        _fill(slot_of_class, -1)
        used = 0
        block2 = 0
        for r in range(first, last):
            wanted = wanted2[classes[r]]
            block2 += wanted
            slot = slot_of_class[classes[r]]
            if slot < 0:
                slot = slot_of_class[classes[r]] = used
                used += 1
                row_odds = odds[slot if tapwise else 0]
                at_first = wanted / (2 * columns - wanted)
                for c in range(columns):
                    row_odds[c] = at_first * weights[c]
                _scale(row_odds, wanted)
                for c in range(columns):
                    plain[slot, c] = _fixed_point(row_odds[c])
                if mode == MEASURE and not tapwise:
                    zero_bits[slot] = _bits_of_zeros(plain[slot])
            if mode == MEASURE and not tapwise:
                # Rows of a class share the bits of their zeros: what is left is to look at the nonzeros.
                measured[0] += zero_bits[slot]
                _measure_ones(measured, plain[slot], flat[r])
            elif not tapwise:
                code_flags(mode, words, state, measured, plain[slot], flat[r])
                if state[_DAMAGED]:
                    return
        if tapwise:
            _fill(around.reshape(-1), 0)
            for t in range(taps):
                i, j = t // width, t % width
                for k in range(9):
                    factors[k] = _odds_ratio(np.float64(near_seen[k]), near_expected[k] / ONE, near_total[k], priors[3])
                _fill(add_seen, 0)
                _fill(add_expected, 0)
                _fill(add_total, 0)
                for r in range(first, last):
                    slot = slot_of_class[classes[r]]
                    window = around[r - first]
                    for g in range(groups):
                        edge = window[g, i, j + 1] + window[g, i + 1, j]
                        context = edge * 3 + window[g, i, j] + window[g, i, j + 2]
                        contexts[g] = context
                        probabilities[g] = _fixed_point(odds[slot, g * taps + t] * factors[context])
                        values[g] = flat[r, g * taps + t]
                        add_expected[context] += plain[slot, g * taps + t]
                        add_total[context] += 1
                    code_flags(mode, words, state, measured, probabilities, values)
                    if state[_DAMAGED]:
                        return
                    for g in range(groups):
                        flat[r, g * taps + t] = values[g]
                        window[g, i + 1, j + 1] = values[g]
                        add_seen[contexts[g]] += values[g]
                _add(near_seen, add_seen)
                _add(near_expected, add_expected)
                _add(near_total, add_total)
        # What these rows teach.
        mean2 = block2 // (last - first)
        row_odds = weights  # no longer needed
        for c in range(columns):
            row_odds[c] = base[c]
        _scale(row_odds, max(mean2, 1))
        for c in range(columns):
            column_expected[c] += np.int64(_fixed_point(row_odds[c])) * (last - first)
        for r in range(first, last):
            for g in range(groups):
                for t in range(taps):
                    value = flat[r, g * taps + t]
                    if value:
                        column_counts[g * taps + t] += 1
                        group_counts[g] += 1
                        tap_counts[t] += 1
        seen_rows += last - first
        nonzeros2 += block2


@helper
def _symbol_weights(counts: Array, observation: int, borrowed: int, limit: int, into: Array) -> None:
    """Fills in the weights [contexts, K], as `adaptive_models.Symbols.weights`."""
    contexts, size = counts.shape
    common = np.empty(size, np.int64)
    all_of_them = np.int64(0)
    for s in range(size):
        common[s] = 1
        for k in range(contexts):
            common[s] += 2 * counts[k, s]
        all_of_them += common[s]
    most = np.int64(0)
    for k in range(contexts):
        total = np.int64(0)
        for s in range(size):
            if contexts == 1:
                into[k, s] = common[s] * (observation // 2)
            else:
                into[k, s] = counts[k, s] * observation + (common[s] * (observation * borrowed)) // all_of_them + 1
            total += into[k, s]
        most = max(most, total)
    if most >= limit:
        for k in range(contexts):
            total = _sum(into[k])
            if total >= limit:
                for s in range(size):
                    into[k, s] = into[k, s] * limit // total + 1


@kernel
def code_tensor(
    mode: int,
    words: Words,
    state: State,
    measured: Floats,
    codes: Any,
    counts: Array,
    table: Array,
    cuts: Array,
    clear: int,
    constants: Array,
) -> None:
    """Codes the nonzeros of a tensor [R, G, H, W] in place, as `adaptive_models.code_codes`.

    Args:
        mode, words, state, measured: of the coder.
        codes: int16, 1..K where there is a nonzero.
        counts: [contexts, K] of the model, updated.
        table: the codebook [K + 1] in units of its step, after a zero.
        cuts: first rows of the blocks, and R.
        clear: the sum of neighbours that is clear.
        constants: of the model: weight of an observation, observations borrowed, limit of weights.
    """
    groups, height, width = codes.shape[1:]
    contexts, size = counts.shape
    spatial = height * width > 1
    most = 0
    for block in range(len(cuts) - 1):
        most = max(most, cuts[block + 1] - cuts[block])
    sums = np.zeros((groups, height, width), np.int64)
    around = np.zeros((most if spatial else 0, groups, height + 1, width + 2), np.int64)
    place = np.empty(most * groups, np.int64)
    context_of = np.empty(most * groups, np.int8)
    weights = np.empty((contexts, size), np.int64)
    edges = np.empty(size + 1, np.int64)
    added = np.zeros((contexts, size), np.int64)
    for block in range(len(cuts) - 1):
        first, last = cuts[block], cuts[block + 1]
        _fill(around.reshape(-1), 0)
        for i in range(height):
            for j in range(width):
                live = 0
                for r in range(first, last):
                    for g in range(groups):
                        if codes[r, g, i, j] <= 0:
                            continue
                        context = 0
                        if contexts > 1:
                            if spatial:
                                window = around[r - first, g]
                                near = 2 * (window[i, j + 1] + window[i + 1, j]) + window[i, j] + window[i, j + 2]
                            else:
                                near = sums[g, i, j]
                            context = 2 + (near > 0) - (near < 0) + (near > clear) - (near < -clear)
                        place[live] = (r - first) * groups + g
                        context_of[live] = context
                        live += 1
                if not live:
                    continue
                _symbol_weights(counts, constants[0], constants[1], constants[2], weights)
                _fill(added.reshape(-1), 0)
                for context in range(contexts):
                    ready = False
                    total = 0.0
                    for n in range(live):
                        if context_of[n] != context:
                            continue
                        r, g = first + place[n] // groups, place[n] % groups
                        value = np.int64(codes[r, g, i, j]) - 1
                        if size > 1:
                            if not ready:
                                _cumulative(weights[context], edges)
                                total = np.float64(_sum(weights[context]))
                                ready = True
                            value = _code_symbol(mode, words, state, measured, weights[context], total, edges, value)
                            if state[_DAMAGED]:
                                return
                        else:
                            value = np.int64(0)
                        codes[r, g, i, j] = value + 1
                        added[context, value] += 1
                        if spatial:
                            around[r - first, g, i + 1, j + 1] = table[value + 1]
                _add(counts.reshape(-1), added.reshape(-1))
        if not spatial:
            for r in range(first, last):
                for g in range(groups):
                    sums[g, 0, 0] += table[codes[r, g, 0, 0]]


@kernel
def code_classes(
    mode: int,
    words: Words,
    state: State,
    measured: Floats,
    values: Array,
    size: int,
    ends: Array,
    constants: Array,
) -> None:
    """Codes classes [n] in 0..size-1 in place, block by block, as `adaptive_models.Ordered`.

    Args:
        mode, words, state, measured: of the coder.
        values: int64.
        size: of classes.
        ends: first values of the blocks, and n.
        constants: as in `code_tensor`.
    """
    zero, zero_weights = np.zeros((1, 2), np.int64), np.empty((1, 2), np.int64)
    weights, used = np.empty(max(1, size - 1), np.int64), np.empty(max(1, size - 1), np.int64)
    _fill(weights, 1)
    live, others = np.empty(len(values), np.int64), np.empty(len(values), np.int64)
    for block in range(len(ends) - 1):
        first, last = ends[block], ends[block + 1]
        _symbol_weights(zero, constants[0], constants[1], constants[2], zero_weights)
        for n in range(first, last):
            live[n] = values[n] > 0
        code_symbols(mode, words, state, measured, zero_weights[0], live[first:last])
        if state[_DAMAGED]:
            return
        count = 0
        for n in range(first, last):
            zero[0, live[n]] += 1
            if live[n]:
                others[count] = values[n] - 1
                count += 1
        if len(weights) > 1:
            top, total = np.int64(0), _sum(weights)
            for c in range(len(weights)):
                top = max(top, weights[c])
            for c in range(len(weights)):
                used[c] = weights[c] * constants[2] // total + 1 if len(weights) * top > constants[2] else weights[c]
            code_symbols(mode, words, state, measured, used, others[:count])
            if state[_DAMAGED]:
                return
        else:
            _fill(others[:count], 0)
        count = 0
        for n in range(first, last):
            values[n] = 0
            if live[n]:
                value = others[count]
                count += 1
                values[n] = value + 1
                weights[value] += 8
                if value + 1 < len(weights):
                    weights[value + 1] += 4
                if value > 0:
                    weights[value - 1] += 4


@kernel
def code_integers(
    mode: int,
    words: Words,
    state: State,
    measured: Floats,
    values: Array,
    contexts: Array,
    lengths: Array,
    signs: Array,
    ends: Array,
    constants: Array,
) -> None:
    """Codes integers [n] in place, block by block, as `adaptive_models.Integers`.

    Args:
        mode, words, state, measured: of the coder.
        values: int64.
        contexts: [n].
        lengths: counts [contexts, LENGTHS], updated.
        signs: counts [1, 2], updated; [0, 2] where there are none.
        ends: first values of the blocks, and n.
        constants: as in `code_tensor`.
    """
    weights, sign_weights = np.empty(lengths.shape, np.int64), np.empty((1, 2), np.int64)
    edges, sign_edges = np.empty(lengths.shape[1] + 1, np.int64), np.empty(3, np.int64)
    length_of = np.empty(len(values), np.int64)
    for block in range(len(ends) - 1):
        first, last = ends[block], ends[block + 1]
        _symbol_weights(lengths, constants[0], constants[1], constants[2], weights)
        longest = np.int64(0)
        for context in range(len(lengths)):
            _cumulative(weights[context], edges)
            total = np.float64(_sum(weights[context]))
            for n in range(first, last):
                if contexts[n] != context:
                    continue
                length, rest = np.int64(0), abs(values[n])
                while rest:
                    length += 1
                    rest >>= 1
                length = np.int64(_code_symbol(mode, words, state, measured, weights[context], total, edges, length))
                if state[_DAMAGED]:
                    return
                length_of[n] = length
                longest = max(longest, length)
        for n in range(first, last):
            lengths[contexts[n], length_of[n]] += 1
        for width in range(1, longest):
            leading = np.int64(1) << width
            for n in range(first, last):
                if length_of[n] != width + 1:
                    continue
                below = _code_number(mode, words, state, measured, width, abs(values[n]) - leading)
                if state[_DAMAGED]:
                    return
                if mode == DECODE:
                    values[n] = leading + below
        if mode == DECODE:
            for n in range(first, last):
                if length_of[n] < 2:
                    values[n] = length_of[n]
        if not len(signs):
            continue
        _symbol_weights(signs, constants[0], constants[1], constants[2], sign_weights)
        _cumulative(sign_weights[0], sign_edges)
        total = np.float64(_sum(sign_weights[0]))
        for n in range(first, last):
            if length_of[n]:
                sign = np.int64(values[n] < 0)
                sign = np.int64(_code_symbol(mode, words, state, measured, sign_weights[0], total, sign_edges, sign))
                if state[_DAMAGED]:
                    return
                signs[0, sign] += 1
                values[n] = -abs(values[n]) if sign else abs(values[n])


class CompiledCoder:
    """A coder whose state lies in arrays, for compiled code; see `range_coder.Coder` for its methods."""

    mode = MEASURE

    def __init__(self, words: Words) -> None:
        self.words = words
        self.state = np.zeros(5, np.uint64)
        self.state[_WIDTH] = 0xFFFFFFFFFFFFFFFF
        self.measured = np.array([0.0, 1.0])

    @property
    def compiled(self) -> CompiledCoder:
        return self

    @property
    def chooses(self) -> bool:
        return self.mode != DECODE

    def meter(self) -> CompiledMeter:
        return CompiledMeter()

    def part(self, part: str, name: str) -> None:
        pass

    def arguments(self, symbols: int) -> tuple[int, Words, State, Floats]:
        """Returns what a kernel needs to code at most so many symbols."""
        return self.mode, self.words, self.state, self.measured

    def run(self, code: Callable[..., None], symbols: int, *arguments: Any) -> None:
        """Calls a kernel that codes at most so many symbols.

        Raises:
            CorruptArtifactError: no encoder wrote what is read.
        """
        code(*self.arguments(symbols), *arguments)
        if self.state[_DAMAGED]:
            raise CorruptArtifactError("the compressed stream is damaged")

    def code_positions(self, mask: Flags, *arguments: Any) -> None:
        """See the kernel."""
        self.run(code_positions, mask.size, mask, *arguments)

    def code_classes(self, values: Array, size: int, ends: Array, constants: Array) -> Array:
        """See the kernel."""
        values = values.astype(np.int64)
        self.run(code_classes, 2 * len(values), values, size, ends, constants)
        return values

    def code_integers(self, values: Array, *arguments: Any) -> Array:
        """See the kernel."""
        values = values.astype(np.int64)
        self.run(code_integers, 3 * len(values), values, *arguments)
        return values

    def code_tensor(self, codes: Codes, *arguments: Any) -> None:
        """See the kernel."""
        self.run(code_tensor, codes.size, codes, *arguments)

    def flags(self, probabilities: Array, values: Array) -> Array:
        values = values.astype(np.int64)
        self.run(code_flags, len(values), probabilities.astype(np.int64), values)
        return values

    def symbols(self, weights: Array, values: Array) -> Array:
        if len(weights) < 2:
            return values if self.chooses else np.zeros(len(values), np.int64)
        values = values.astype(np.int64)
        self.run(code_symbols, len(values), weights.astype(np.int64), values)
        return values

    def bits(self, count: int, values: Array) -> Array:
        if not count:
            return values if self.chooses else np.zeros(len(values), np.int64)
        values = values.astype(np.int64)
        self.run(code_bits, len(values), count, values)
        return values


class CompiledEncoder(CompiledCoder):
    """Writes a stream: the bytes of `range_coder.Encoder`."""

    mode = ENCODE

    def __init__(self) -> None:
        super().__init__(np.empty(1024, np.uint32))

    def arguments(self, symbols: int) -> tuple[int, Words, State, Floats]:
        written = int(self.state[_WRITTEN])
        if written + symbols > len(self.words):  # a symbol takes one word at most
            grown = np.empty(2 * len(self.words) + symbols, np.uint32)
            grown[:written] = self.words[:written]
            self.words = grown
        return super().arguments(symbols)

    def finish(self) -> bytes:
        """Returns the stream: as few bytes as decode to what was written when zeros follow."""
        words = self.words[: int(self.state[_WRITTEN])].astype(">u4").tobytes()
        start = (int.from_bytes(words, "big") << 64) + int(self.state[_LOWER])
        return roundest(start, int(self.state[_WIDTH]), len(words) + 8)


class CompiledDecoder(CompiledCoder):
    """Reads a stream."""

    mode = DECODE

    def __init__(self, data: bytes) -> None:
        super().__init__(words_of(data))
        first, second = (int(word) for word in np.append(self.words, np.zeros(2, np.uint32))[:2])
        self.state[_POINT], self.state[_WRITTEN] = first << 32 | second, 2


class CompiledMeter(CompiledCoder):
    """Counts what an encoder would write, in bits."""

    def __init__(self) -> None:
        super().__init__(np.empty(0, np.uint32))
        self._booked: dict[tuple[str, str], float] = {}
        self._key = ("header", "")

    def part(self, part: str, name: str) -> None:
        self._book()
        self._key = (part, name)

    def _book(self) -> None:
        bits = float(self.measured[0] - np.log2(self.measured[1]))
        self.measured[:] = 0.0, 1.0
        self._booked[self._key] = self._booked.get(self._key, 0.0) + bits

    @property
    def booked(self) -> dict[tuple[str, str], float]:
        self._book()
        return self._booked

    @property
    def total_bits(self) -> float:
        return sum(self.booked.values())
