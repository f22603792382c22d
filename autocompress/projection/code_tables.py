"""The code tables of a layer: from nothing, re-estimated from an assignment, and grown where the price allows."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from autocompress.costs.code_length import CODEBOOK_VALUE_BITS, CodeLengths, Counts, estimate_code_lengths
from autocompress.projection.codebook_size import merge_codes, split_codes
from autocompress.projection.priced_assignment import LayerTables

MAX_CODES = 255
NEW_CODE_BITS = 2.0  # what a code that nothing uses yet is expected to cost


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
    return codes, LayerTables(values, estimate_code_lengths(Counts.of_codes(codes, len(means))))


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


def grown_tables(matrix: Tensor, codes: Tensor, tables: LayerTables, price: float) -> LayerTables:
    """Returns tables with all the values that are worth their place at a price: splits, then births."""
    return with_births(matrix, codes, with_splits(matrix, codes, tables, price), price)


def cold_tables(matrices: list[Tensor], budget_bits: float) -> tuple[float, list[LayerTables]]:
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
        tables.append(LayerTables(values.float(), estimate_code_lengths(Counts.of_codes(codes, values.numel()))))
    return price, tables
