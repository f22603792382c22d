"""The priced projection: entropy-constrained quantization of all layers at one price per bit.

Problem:  minimise  sum_l ||V_l - X_l||^2   subject to   sum_l bits(V_l) <= budget_bits,
where X = W + U (the network plus the scaled dual), V_l takes values in a codebook of its layer or zero, and bits() is
the static code length of `costs.code_length`: positions, codes and codebooks.

With the code tables (codebook values, code lengths, row and column odds) held fixed, the Lagrangian separates over
weights: each takes the value of least `error + price * bits`, and the used bits fall as the price rises, so the price
follows by bisection, exactly. The tables are then re-estimated from the assignment (Lloyd's algorithm for
entropy-constrained quantization, Chou, Lookabaugh and Gray 1989) and the two are alternated. The alternation is a
descent heuristic for a non-convex problem: it keeps the best feasible candidate it has seen. Cost: O(n) per price.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from autocompress.codebooks import CodedTensor, coded_tensor
from autocompress.costs.code_length import (
    CODEBOOK_VALUE_BITS,
    TENSOR_BITS,
    CodeLengths,
    as_matrix,
    code_length,
    estimate_code_lengths,
)
from autocompress.projection.codebook_size import merge_codes, split_codes

WARM_ROUNDS = 2  # re-estimations of the tables per projection, before the last
COLD_ROUNDS = 8  # the same, without tables to start from
BISECTIONS = 30
PRICE_TOLERANCE = 2e-3  # relative width of the price bracket at which the bisection stops
BUDGET_TOLERANCE = 2e-3  # a bisection that lands this close under its budget stops early
MAX_CODES = 255
LEAST_PRICE = 1e-7  # of the mean square: below, bits are free and no price is looked for
LARGEST_PRICE_MOVE = 2.0  # factor per round
NEW_CODE_BITS = 2.0  # what a code that nothing uses yet is expected to cost
MIN_NONZEROS = 1  # per tensor, so that no layer goes dead


@dataclass(frozen=True)
class LayerTables:
    """What is known of a layer's code between two projections.

    Attributes:
        values: float32 [K], ascending codebook values, none zero.
        lengths: the code lengths for those values.
    """

    values: Tensor
    lengths: CodeLengths


@dataclass(frozen=True)
class PricedState:
    """Warm start of the next projection: the price per bit and every layer's tables."""

    price: float
    tables: list[LayerTables]


@dataclass(frozen=True)
class PricedProjection:
    """Outcome of `project_priced`.

    Attributes:
        coded: V, one tensor per layer, with codebooks as the file reproduces them.
        bits: estimated code length of all layers, <= the budget.
        error: ||V - X||^2 over all layers.
        state: warm start for the next call.
    """

    coded: list[CodedTensor]
    bits: float
    error: float
    state: PricedState


@dataclass(frozen=True)
class _Candidate:
    """An assignment at a price: codes int16 [R, C] of each layer, and the tables that fit them."""

    price: float
    codes: list[Tensor]
    tables: list[LayerTables]

    @property
    def bits(self) -> float:
        return sum(code_length(c, t.values.numel()) for c, t in zip(self.codes, self.tables, strict=True))


@dataclass(frozen=True)
class _Layer:
    """X_l as a matrix [R, C] and its current tables."""

    matrix: Tensor
    tables: LayerTables

    @cached_property
    def zero_bits(self) -> float:
        """Bits of the layer with nothing kept; the same at every price."""
        return self.tables.lengths.zero_bits()

    @cached_property
    def least_bits(self) -> float:
        """What the cheapest nonzero that could be costs."""
        lengths = self.tables.lengths
        return float(lengths.row_bits.min() + lengths.column_bits.min() + lengths.code_bits.min())


def lower_envelope(values: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Returns which values are best somewhere, and the thresholds between them.

    A scalar x goes to the value minimising (x - value)^2 + offset. All parabolas have one curvature, so each value owns
    an interval or nothing; exact, O(K).

    Args:
        values: [K] ascending, distinct.
        offsets: [K].

    Returns:
        indices int64 [k] into `values`, ascending, and thresholds [k - 1] between neighbours.
    """
    kept: list[int] = []
    starts: list[float] = []
    v, o = values.tolist(), offsets.tolist()
    for i in range(len(v)):
        start = -math.inf
        while kept:
            j = kept[-1]
            start = 0.5 * (v[i] + v[j]) + (o[i] - o[j]) / (2 * (v[i] - v[j])) if v[i] > v[j] else math.nan
            if math.isnan(start):  # two equal values: the cheaper one stays
                start = -math.inf if o[i] < o[j] else math.inf
            if start > starts[-1]:
                break
            kept.pop()
            starts.pop()
            start = -math.inf
        if start < math.inf:
            kept.append(i)
            starts.append(start)
    thresholds = torch.tensor(starts[1:], dtype=values.dtype, device=values.device)
    return torch.tensor(kept, dtype=torch.int64, device=values.device), thresholds


def assign(layer: _Layer, price: float) -> tuple[Tensor, Tensor, float]:
    """Returns the nonzero elements of least `error + price * bits` and what they cost under fixed tables.

    Returns:
        flat indices int64 [m] of the kept elements, their codes int64 [m] in 0..K-1, and the bits of the layer.
    """
    values, lengths = layer.tables.values, layer.tables.lengths
    if not values.numel():
        nothing = torch.zeros(0, dtype=torch.int64, device=layer.matrix.device)
        return nothing, nothing, layer.zero_bits
    kept_values, thresholds = lower_envelope(values, price * lengths.code_bits)
    flat = layer.matrix.flatten()
    floor = price * layer.least_bits
    if floor > 0:  # only a weight whose square exceeds the least price can be worth a nonzero
        index = (flat.abs() > math.sqrt(floor)).nonzero().flatten()
        x = flat[index]
    else:
        index, x = torch.arange(flat.numel(), device=flat.device), flat
    code = kept_values[torch.bucketize(x, thresholds)]
    value, columns = values[code], layer.matrix.shape[1]
    bits = lengths.code_bits[code] + lengths.row_bits[index // columns] + lengths.column_bits[index % columns]
    gain = value * (2 * x - value) - price * bits
    keep = gain > 0
    if int(keep.sum()) < MIN_NONZEROS:
        if not x.numel():
            index = flat.abs().argmax()[None]
            code = kept_values[torch.bucketize(flat[index], thresholds)]
            bits = lengths.code_bits[code] + lengths.row_bits[index // columns] + lengths.column_bits[index % columns]
            keep = torch.ones_like(index, dtype=torch.bool)
        else:
            keep = torch.zeros_like(keep)
            keep[gain.topk(min(MIN_NONZEROS, gain.numel())).indices] = True
    return index[keep], code[keep], layer.zero_bits + float(bits[keep].sum())


def bits_under_tables(layers: Sequence[_Layer], price: float) -> float:
    """Returns the bits of the assignment at a price as its fixed tables count them; never rises with the price."""
    fixed = sum(TENSOR_BITS + CODEBOOK_VALUE_BITS * layer.tables.values.numel() for layer in layers)
    return fixed + sum(assign(layer, price)[2] for layer in layers)


def bits_of_assignment(layers: Sequence[_Layer], price: float) -> float:
    """Returns the bits of the same assignment under the tables that fit it."""
    return sum(code_length(_codes(layer, price), layer.tables.values.numel()) for layer in layers)


def find_price(
    layers: Sequence[_Layer],
    budget_bits: float,
    start: float,
    bits_at: Callable[[Sequence[_Layer], float], float] = bits_under_tables,
) -> float:
    """Returns the least price, within a relative tolerance, at which `bits_at` the price are within the budget."""
    squares = sum(float(layer.matrix.square().sum()) for layer in layers)
    free = LEAST_PRICE * squares / sum(layer.matrix.numel() for layer in layers) + 1e-30
    start = max(start, free)
    low, high = start / 1.3, start * 1.3
    while bits_at(layers, high) > budget_bits:
        low, high = high, high * (high / low) ** 2
        if high > 1e30:
            return high  # the floor of one nonzero per layer does not fit: the caller checks feasibility
    while low > free and bits_at(layers, low) <= budget_bits:
        low, high = max(low / (high / low) ** 2, free), low
    for _ in range(BISECTIONS):
        middle = math.sqrt(low * high)
        bits = bits_at(layers, middle)
        low, high = (low, middle) if bits <= budget_bits else (middle, high)
        if high / low < 1 + PRICE_TOLERANCE or 0 <= budget_bits - bits < BUDGET_TOLERANCE * budget_bits:
            break
    return high


def _codes(layer: _Layer, price: float) -> Tensor:
    """Returns int16 codes [R, C] of the best assignment at a price, 0 for zero."""
    index, code, _ = assign(layer, price)
    codes = torch.zeros(layer.matrix.numel(), dtype=torch.int16, device=layer.matrix.device)
    codes[index] = (code + 1).to(torch.int16)
    return codes.view(layer.matrix.shape)


def re_estimate(matrix: Tensor, codes: Tensor, size: int, price: float, *, merge: bool) -> tuple[Tensor, LayerTables]:
    """Returns the assignment with its codebook made better, and the tables that fit it.

    Values become centroids; codes that nothing uses go, and with `merge` those that are not worth their place.

    Args:
        matrix: X [R, C].
        codes: int16 [R, C], 0 for zero, 1..size.
        size: codebook values so far.
        price: squared error per bit.
        merge: see `codebook_size.merge_codes`.
    """
    index = codes.flatten().nonzero().flatten()
    code = codes.flatten()[index].long() - 1
    x = matrix.flatten()[index].double()
    counts = torch.bincount(code, minlength=size)
    sums = torch.zeros(size, dtype=torch.float64, device=x.device).scatter_add_(0, code, x)
    zeros = codes.numel() - index.numel()
    worth = price if merge else 0.0
    place, means = merge_codes(counts.tolist(), sums.tolist(), zeros, worth * CODEBOOK_VALUE_BITS, worth)
    table = torch.tensor(place, dtype=torch.int16, device=x.device)
    codes = torch.zeros_like(codes.flatten()).index_put((index,), table[code]).view(codes.shape)
    values = torch.tensor(means, dtype=torch.float32, device=x.device)
    return codes, LayerTables(values, estimate_code_lengths(codes, len(means)))


def with_splits(matrix: Tensor, codes: Tensor, tables: LayerTables, price: float) -> LayerTables:
    """Returns tables in which codes too wide for the price are split in two; the next assignment uses them."""
    size = tables.values.numel()
    if not size:
        return tables
    index = codes.flatten().nonzero().flatten()
    code = codes.flatten()[index].long() - 1
    spread = (matrix.flatten()[index] - tables.values[code]).double().square()
    counts = torch.bincount(code, minlength=size)
    sums = torch.zeros(size, dtype=torch.float64, device=spread.device).scatter_add_(0, code, spread)
    values, parents = split_codes(
        tables.values.tolist(), counts.tolist(), sums.tolist(), price * CODEBOOK_VALUE_BITS, price, MAX_CODES
    )
    if len(values) == size:
        return tables
    source = torch.tensor(parents, device=tables.values.device)
    code_bits = tables.lengths.code_bits[source] + (torch.bincount(source, minlength=size)[source] > 1).float()
    lengths = CodeLengths(code_bits, tables.lengths.row_bits, tables.lengths.column_bits)
    return LayerTables(torch.tensor(values, dtype=torch.float32, device=source.device), lengths)


def with_births(matrix: Tensor, codes: Tensor, tables: LayerTables, price: float) -> LayerTables:
    """Returns tables with a small new value on either side of zero where the weights now zero are worth it."""
    lengths = tables.lengths
    value_bits = float(lengths.row_bits.mean() + lengths.column_bits.mean()) + NEW_CODE_BITS
    flat = matrix.flatten()[(codes == 0).flatten()]
    values, code_bits = tables.values, lengths.code_bits
    # Below a quarter of the smallest value zero is the nearer neighbour of anything that could be added.
    least = max(math.sqrt(max(price * value_bits, 0.0)), float(values.abs().min()) / 4 if values.numel() else 0.0)
    for side in (-1, 1):
        x = side * flat
        x = x[x > least]
        if not x.numel() or values.numel() >= MAX_CODES:
            continue
        mean = float(x.double().mean())
        saved = mean**2 * x.numel() - price * (value_bits * x.numel() + CODEBOOK_VALUE_BITS)
        if saved > 0 and not bool((values == side * mean).any()):
            values = torch.cat([values, values.new_tensor([side * mean])])
            code_bits = torch.cat([code_bits, code_bits.new_tensor([NEW_CODE_BITS])])
    order = values.argsort()
    return LayerTables(values[order], CodeLengths(code_bits[order], lengths.row_bits, lengths.column_bits))


def _cold_tables(matrices: list[Tensor], budget_bits: float) -> tuple[float, list[LayerTables]]:
    """Returns a price and tables from nothing: the largest weights that fit at a guessed length, uniform codebooks."""
    everything = torch.cat([matrix.abs().flatten() for matrix in matrices])
    total = everything.numel()
    # Solve keep * (log2(e * total / keep) + 3) = budget for the number of weights to keep.
    keep = min(max(budget_bits / 4, len(matrices)), 0.95 * total)
    for _ in range(30):
        keep = min(max(budget_bits / (math.log2(math.e * total / keep) + 3), len(matrices)), 0.95 * total)
    threshold = float(everything.kthvalue(max(1, total - int(keep))).values)
    positive = everything[everything > 0]
    smallest = float(positive.min()) if positive.numel() else 1e-12
    threshold = max(threshold, smallest / 2)
    price = threshold**2 / (math.log2(math.e * total / keep) + 3)
    step = math.sqrt(6 * price / math.log(2))  # the uniform step whose error slope equals the price at high rate
    tables = []
    # Codebooks together take at most a quarter of the budget to start with; splits add what more is worth its place.
    most = max(1, int(budget_bits / (4 * CODEBOOK_VALUE_BITS * len(matrices)) / 2))
    for matrix in matrices:
        low, high = float(matrix.min()), float(matrix.max())
        size = max(1, min(MAX_CODES // 2, most, math.ceil((max(high, -low) - threshold) / step)))
        levels = threshold + (torch.arange(size, device=matrix.device) + 0.5) * max(
            (max(high, -low) - threshold) / size, 1e-12
        )
        values = torch.cat(
            [-levels.flip(0)[levels.flip(0) <= max(-low, 0) + step], levels[levels <= max(high, 0) + step]]
        )
        values = values if values.numel() else torch.tensor([high if high else 1e-12], device=matrix.device)
        codes = (torch.bucketize(matrix, 0.5 * (values[1:] + values[:-1])) + 1).to(torch.int16)
        codes = torch.where(matrix.abs() > threshold, codes, torch.zeros_like(codes))
        tables.append(LayerTables(values.float(), estimate_code_lengths(codes, values.numel())))
    return price, tables


def _re_assign(
    matrices: list[Tensor], tables: list[LayerTables], budget_bits: float, start: float, *, last: bool
) -> _Candidate:
    """Returns the assignment at the price that fits the budget under these tables, and the tables that fit it.

    The last time the bits are counted as they come out, and codebooks keep their sizes. Before, the price that decides
    over sizes moves by `LARGEST_PRICE_MOVE` at most: tables too small for the budget make bits look free, and what is
    bought then at once would be thrown away in the next round.
    """
    layers = [_Layer(matrix, table) for matrix, table in zip(matrices, tables, strict=True)]
    price = find_price(layers, budget_bits, start, bits_of_assignment if last else bits_under_tables)
    damped = min(max(price, start / LARGEST_PRICE_MOVE), start * LARGEST_PRICE_MOVE)
    pairs = [
        re_estimate(lay.matrix, _codes(lay, price), lay.tables.values.numel(), damped, merge=not last) for lay in layers
    ]
    return _Candidate(damped, [codes for codes, _ in pairs], [table for _, table in pairs])


def _error(matrices: list[Tensor], found: _Candidate) -> float:
    error = 0.0
    for matrix, codes, table in zip(matrices, found.codes, found.tables, strict=True):
        values = torch.cat([table.values.new_zeros(1), table.values])
        error += float((matrix - values[codes.long()]).square().sum())
    return error


def _nothing(matrices: list[Tensor], price: float) -> _Candidate:
    """Returns the all-zero assignment: what is left when not even one nonzero per tensor fits."""
    codes = [torch.zeros(m.shape, dtype=torch.int16, device=m.device) for m in matrices]
    tables = [LayerTables(m.new_zeros(0), estimate_code_lengths(c, 0)) for m, c in zip(matrices, codes, strict=True)]
    return _Candidate(price, codes, tables)


def _grown(matrix: Tensor, codes: Tensor, tables: LayerTables, price: float) -> LayerTables:
    return with_births(matrix, codes, with_splits(matrix, codes, tables, price), price)


def project_priced(
    targets: Sequence[Tensor],
    budget_bits: float,
    previous: PricedState | None = None,
) -> PricedProjection:
    """Projects X onto the networks whose estimated code length is at most `budget_bits`.

    Each tensor keeps at least one nonzero as long as the budget has room for that; below, all become zero.

    Args:
        targets: X = W + U, float tensors of two or more dimensions each.
        budget_bits: for positions, codes and codebooks of all tensors together.
        previous: state of the last projection, for a warm start.
    """
    matrices = [as_matrix(x.detach().float()) for x in targets]
    warm = previous is not None and all(table.values.numel() for table in previous.tables)
    price, tables = (previous.price, previous.tables) if warm and previous else _cold_tables(matrices, budget_bits)
    grown = tables
    for _ in range(WARM_ROUNDS if warm else COLD_ROUNDS):
        found = _re_assign(matrices, grown, budget_bits, price, last=False)
        price, tables = found.price, found.tables
        grown = [_grown(m, c, t, price) for m, c, t in zip(matrices, found.codes, tables, strict=True)]
    ends = [_re_assign(matrices, start, budget_bits, price, last=True) for start in (tables, grown)]
    feasible = [end for end in ends if end.bits <= budget_bits] or [_nothing(matrices, price)]
    best = min(feasible, key=lambda end: _error(matrices, end))
    coded = [
        coded_tensor(codes.view(x.shape), table.values)
        for codes, table, x in zip(best.codes, best.tables, targets, strict=True)
    ]
    return PricedProjection(
        coded,
        bits=sum(code_length(as_matrix(c.codes), c.values.numel()) for c in coded),
        error=sum(float((c.dense() - x).square().sum()) for c, x in zip(coded, targets, strict=True)),
        state=PricedState(best.price, best.tables),
    )
