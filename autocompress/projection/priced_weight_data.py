"""The priced projection for weight data: one price for bits times nonzeros, positions free.

Problem:  minimise  sum_l ||V_l - X_l||^2   subject to   sum_l b_l ||V_l||_0 <= budget_bits,   b_l fixed.

With codebooks fixed a weight is kept iff what its nearest value takes off its squared error is worth b_l at the price;
what the bisection leaves of the budget is filled with the weights next in line, and centroids are re-estimated. The
alternating mode (`alternating`) prunes by the weight's own square, as if it were kept exactly, which is never better;
started from its result this is therefore a descent. Exact for fixed codebooks up to the last weight that fits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from autocompress.network.compressed_tensors import CodedTensor, coded_tensor

ROUNDS = 4


def improve_weight_data(targets: Sequence[Tensor], start: Sequence[CodedTensor], budget_bits: int) -> list[CodedTensor]:
    """Returns coded tensors of no more weight data than the budget and no more error than the ones to start from.

    Args:
        targets: X, one per layer, any shape.
        start: a feasible solution for them; its bits per layer are kept.
        budget_bits: most weight-data bits.
    """
    best, best_error = list(start), _error(targets, start)
    values = [c.values for c in start]
    bits = [c.bits for c in start]
    for _ in range(ROUNDS):
        kept = _keep(targets, values, bits, budget_bits)
        values = [_centroids(x, mask, v) for x, mask, v in zip(targets, kept, values, strict=True)]
        coded = [_encode(x, mask, v) for x, mask, v in zip(targets, kept, values, strict=True)]
        error = _error(targets, coded)
        if error < best_error and sum(c.weight_data_bits for c in coded) <= budget_bits:
            best, best_error = coded, error
    return best


def _error(targets: Sequence[Tensor], coded: Sequence[CodedTensor]) -> float:
    return sum(float((c.dense() - x).double().square().sum()) for c, x in zip(coded, targets, strict=True))


def _nearest(x: Tensor, values: Tensor) -> Tensor:
    """Returns the index of the nearest value, int64 in the shape of x."""
    return torch.bucketize(x.contiguous(), 0.5 * (values[1:] + values[:-1]))


def _keep(targets: Sequence[Tensor], values: Sequence[Tensor], bits: Sequence[int], budget_bits: int) -> list[Tensor]:
    """Returns masks of the weights kept: one per layer, then in the order of error saved per bit while they fit."""
    gains = []
    for x, v in zip(targets, values, strict=True):
        value = v[_nearest(x, v)]
        gains.append((value * (2 * x - value)).flatten().double())
    cost = torch.cat([torch.full_like(gain, b) for gain, b in zip(gains, bits, strict=True)])
    worth = torch.cat([gain / b for gain, b in zip(gains, bits, strict=True)])
    starts = torch.tensor([0, *(gain.numel() for gain in gains)]).cumsum(0)
    for begin, gain in zip(starts.tolist(), gains, strict=False):
        worth[begin + int(gain.argmax())] = torch.inf
    order = worth.argsort(descending=True)
    order = order[worth[order] > 0]
    fits = cost[order].cumsum(0) <= budget_bits
    mask = torch.zeros_like(worth, dtype=torch.bool)
    mask[order[fits]] = True
    sizes = [gain.numel() for gain in gains]
    return [part.view(x.shape) for part, x in zip(torch.split(mask, sizes), targets, strict=True)]


def _centroids(x: Tensor, mask: Tensor, values: Tensor) -> Tensor:
    """Returns the means of the kept weights by nearest value, ascending; a value that nothing uses stays."""
    kept = x[mask].double()
    code = _nearest(kept.to(values), values)
    count = torch.bincount(code, minlength=values.numel())
    total = torch.zeros(values.numel(), dtype=torch.float64, device=x.device).scatter_add_(0, code, kept)
    return torch.where(count > 0, total / count.clamp(min=1), values.double()).float().sort().values


def _encode(x: Tensor, mask: Tensor, values: Tensor) -> CodedTensor:
    codes = torch.where(mask, _nearest(x, values) + 1, 0)
    return coded_tensor(codes, values)
