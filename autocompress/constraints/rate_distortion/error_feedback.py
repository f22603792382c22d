"""The rate-distortion projection on the error of layers' outputs: for a network that is not trained afterwards.

    minimise  sum_l tr G_l (V_l - X_l) H_l (V_l - X_l)^T   subject to   sum_l bits(V_l) <= budget,   H_l = E[x x^T]

for the inputs x of layer l. G_l is diagonal and says how much the network's output moves with each output of the
layer (with its rows, where it is an embedding). With inputs that are uncorrelated and outputs that are alike this is
the projection of `projection`, from whose answer it starts. Column by column, each weight takes the value of least
`error + multiplier * bits`, its error counted with what the columns to its right can still make up for; then they do
(Hassibi and Stork 1993; Frantar et al. 2023, "GPTQ", there on a fixed grid and without a cost in bits). Between passes
codebook values become the means of what they stand for, code lengths and multiplier are estimated anew.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from autocompress.constraints.rate_distortion.assignment import LayerTables
from autocompress.constraints.rate_distortion.projection import BitsProjection, WarmStart, compiles, project_to_bits
from autocompress.constraints.rate_distortion.rates import Counts, as_matrix, code_length, estimate_code_lengths
from autocompress.network.compressed_tensors import QuantizedTensor, quantized_tensor, round_codebook

# Added to the diagonal of H, whose mean is one: the inputs seen are some of those there are.
DAMPING = 0.1
# Of new tables; they end where the error has fallen by no more than this for so many.
ROUNDS, MIN_IMPROVEMENT, PATIENCE = 10, 0.01, 2
# Multipliers tried under the same tables; they end at one that comes this close below the budget, as a part of it.
MULTIPLIERS_TRIED, TOLERANCE = 12, 0.003
MAX_MOVE = math.log(4)  # of the multiplier's logarithm, as long as the budget was passed on one side only
COLUMNS_AT_ONCE = 64
RICHER = 2.0  # budget that the first tables are made for


@dataclass(frozen=True)
class Feedback:
    """How the errors of a layer's columns are counted and made up for, whatever its weights are.

    Attributes:
        second: H, scaled to a mean diagonal of one, [groups, n, n]; [1, 1, 1] where every weight stands for itself.
        factor: upper Cholesky factor of the inverse of the damped H, [groups, n, n].
        rows: the diagonal of G times what H was divided by, [R], in powers of two; None = ones.
    """

    second: Tensor
    factor: Tensor
    rows: Tensor | None = None

    @classmethod
    def of(cls, second: Tensor | None, rows: Tensor | None = None) -> Feedback:
        """Returns that of a layer.

        Args:
            second: second moments of its inputs, E[x x^T], [groups, n, n]; None = of one that does not mix them.
            rows: what an error in each row counts, [R], > 0; None = the same.
        """
        rows = None if rows is None else torch.exp2(torch.log2(rows).round())
        if second is None:
            eye = torch.ones(1, 1, 1) if rows is None else rows.new_ones(1, 1, 1)
            return cls(eye, eye, rows)
        second = second / second.diagonal(dim1=1, dim2=2).mean().clamp_min(1e-30)
        damped = second + DAMPING * torch.eye(second.shape[-1], device=second.device)
        factor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)
        return cls(second, factor, rows)


@dataclass(frozen=True)
class _Layer:
    """X_l, [groups, rows, n], how the errors of its columns are made up for, and what they count, [groups, rows]."""

    x: Tensor
    feedback: Feedback
    counts: Tensor
    compiled: bool

    @classmethod
    def of(cls, x: Tensor, feedback: Feedback | None, compiled: bool) -> _Layer:
        matrix = as_matrix(x.detach().float())
        feedback = feedback or Feedback.of(None)
        rows = feedback.rows
        feedback = Feedback(feedback.second.to(x.device), feedback.factor.to(x.device), rows)
        groups, n, _ = feedback.second.shape
        counts = matrix.new_ones(len(matrix)) if rows is None else rows
        if n < matrix.shape[1]:  # every weight is a row of its own
            counts = counts.repeat_interleave(matrix.shape[1] // n)
        return cls(matrix.reshape(groups, -1, n), feedback, counts.view(groups, -1), compiled)

    @property
    def scale(self) -> float:
        """The square root of what an error counts, the geometric mean."""
        return 1.0 if self.feedback.rows is None else float(self.feedback.rows.log().mean().div(2).exp())

    def error(self, v: Tensor) -> float:
        """Returns tr G (V - X) H (V - X)^T."""
        off = v.view(self.x.shape) - self.x
        each = ((off @ self.feedback.second) * off).sum(2, dtype=torch.float64)
        return float((each * self.counts).sum())


def _assigned(layer: _Layer, tables: LayerTables, shape: tuple[int, int], multiplier: float) -> tuple[Tensor, Tensor]:
    """Returns codes, int64 [R, C], and what X was made, [R, C], before each of its columns was quantized."""
    if layer.compiled and tables.values.numel():
        with contextlib.suppress(OSError):  # numba has no room on the disk for what it compiles
            return _compiled_assignment(layer, tables, shape, multiplier)
    groups, rows, columns = layer.x.shape
    w, codes = layer.x.clone(), torch.zeros(layer.x.shape, dtype=torch.int64, device=layer.x.device)
    factor, lengths = layer.feedback.factor, tables.lengths
    values = torch.cat([tables.values.new_zeros(1), tables.values]).to(w)
    per_bit = (multiplier / layer.counts)[:, :, None]
    bits = lengths.position_bits().to(w).view(w.shape) * per_bit
    code_bits = torch.cat([torch.zeros(1), lengths.code_bits]).to(w) * per_bit
    for start in range(0, columns, COLUMNS_AT_ONCE):
        end = min(start + COLUMNS_AT_ONCE, columns)
        errors = torch.zeros(groups, rows, end - start, device=w.device)
        for j in range(start, end):
            scale = factor[:, j, j].view(-1, 1, 1)
            cost = ((w[:, :, j, None] - values) / scale).square_() + code_bits
            cost[:, :, 1:] += bits[:, :, j, None]
            codes[:, :, j] = cost.argmin(2)
            errors[:, :, j - start] = (w[:, :, j] - values[codes[:, :, j]]) / scale[:, :, 0]
            rest = factor[:, j, j + 1 : end]
            w[:, :, j + 1 : end] -= errors[:, :, j - start, None] * rest[:, None]
        w[:, :, end:] -= errors @ factor[:, start:end, end:]
    return codes.view(shape), w.view(shape)


def _compiled_assignment(
    layer: _Layer, tables: LayerTables, shape: tuple[int, int], multiplier: float
) -> tuple[Tensor, Tensor]:
    """Returns what `_assigned` does, by compiled code."""
    from autocompress.constraints.rate_distortion.compiled_assignment import assign_columns

    mixes = layer.x.shape[2] > 1
    w = layer.x.clone() if mixes else layer.x.view(1, *shape)
    codes = torch.empty(w.shape, dtype=torch.int16)
    groups, rows, columns = w.shape
    per_bit = (multiplier / layer.counts).view(groups, rows, -1)[:, :, 0].contiguous()
    for group, factor in enumerate(layer.feedback.factor):
        made, of = w[group], slice(group * rows, (group + 1) * rows)
        for start in range(0, columns, COLUMNS_AT_ONCE):
            here = slice(start, start + COLUMNS_AT_ONCE)
            block = made[:, here].contiguous()
            square = factor[here, here] if mixes else None
            codes[group, :, here], errors = assign_columns(block, square, tables, of, here, per_bit[group])
            if mixes:
                made[:, here] = block
                made[:, here.stop :] -= errors @ factor[here, here.stop :]
    return codes.view(shape).long(), w.view(shape)


def _tables(layer: _Layer, codes: Tensor, made: Tensor, values: Tensor) -> LayerTables:
    """Returns the tables that fit an assignment: means of what the values stand for, by what their errors cost."""
    diagonal = layer.feedback.factor.diagonal(dim1=1, dim2=2)[:, None]
    weights = (layer.counts[:, :, None] / diagonal.square()).flatten()
    flat = codes.flatten()
    sums = torch.zeros(values.numel() + 1, device=made.device).index_add_(0, flat, made.flatten() * weights)
    counts = torch.zeros_like(sums).index_add_(0, flat, weights)
    fitted = quantized_tensor(codes.cpu(), (sums / counts.clamp_min(1e-30))[1:].cpu())
    return LayerTables(fitted.values, estimate_code_lengths(Counts.of_codes(fitted.codes, fitted.values.numel())))


def _with_one(codes: Tensor, x: Tensor, values: Tensor) -> Tensor:
    """Returns codes of which at least one is not zero: a layer that is all zero ends the network."""
    if not bool(codes.any()) and values.numel():
        place = int(x.abs().argmax())
        codes.view(-1)[place] = 1 + int((values - x.flatten()[place].cpu()).abs().argmin())
    return codes


@dataclass(frozen=True)
class _Pass:
    """All layers quantized under some tables at one multiplier; `fitted` are the tables that fit the outcome."""

    quantized: list[QuantizedTensor]
    fitted: list[LayerTables]
    bits: float
    error: float
    multiplier: float


def _pass(
    layers: Sequence[_Layer], points: Sequence[Tensor], tables: Sequence[LayerTables], multiplier: float
) -> _Pass:
    quantized, fitted, bits, error = [], [], 0.0, 0.0
    for layer, x, table in zip(layers, points, tables, strict=True):
        matrix = as_matrix(x)
        codes, made = _assigned(layer, table, (matrix.shape[0], matrix.shape[1]), multiplier)
        tensor = quantized_tensor(_with_one(codes, matrix, table.values).cpu(), table.values.cpu())
        bits += code_length(Counts.of_codes(tensor.codes, tensor.values.numel()))
        error += layer.error(tensor.dense().to(made))
        quantized.append(QuantizedTensor(tensor.codes.view(x.shape).to(x.device), tensor.values.to(x.device)))
        fitted.append(_tables(layer, codes, made, table.values))
    return _Pass(quantized, fitted, bits, error, multiplier)


def _filled(quantize: Callable[[float], _Pass], budget_bits: float, multiplier: float) -> _Pass | None:
    """Returns the pass that comes closest below a budget of all that were tried; None where none is below.

    Tables are held fixed, so that bits fall as the multiplier rises: under tables that follow every pass they answer
    late, and swing. False position (Illinois) on the logarithms of multiplier and bits.
    """
    goal, at, best = math.log(max(budget_bits * (1 - TOLERANCE / 2), 1.0)), math.log(max(multiplier, 1e-300)), None
    under: tuple[float, float] | None = None  # (logarithm of the multiplier, by how much the bits' is beyond the goal)
    over: tuple[float, float] | None = None
    step = 1.0
    for _ in range(MULTIPLIERS_TRIED):
        found = quantize(math.exp(at))
        excess = math.log(max(found.bits, 1.0)) - goal
        if found.bits <= budget_bits and (best is None or found.bits > best.bits):
            best = found
        if budget_bits * (1 - TOLERANCE) <= found.bits <= budget_bits:
            break
        if excess > 0:
            under = under and (under[0], under[1] / 2) if over else under
            over = at, excess
        else:
            over = over and (over[0], over[1] / 2) if under else over
            under = at, excess
        if under is not None and over is not None:
            share = min(max(over[1] / (over[1] - under[1]), 0.05), 0.95)
            at = over[0] + share * (under[0] - over[0])
        else:  # bits fall about with the square root of the multiplier
            at += min(max(2 * excess, -MAX_MOVE), MAX_MOVE) * step
            step *= 1.5
    return best


def project_with_feedback(
    points: Sequence[Tensor],
    budget_bits: float,
    feedback: Sequence[Feedback | None],
    previous: WarmStart | None = None,
) -> BitsProjection:
    """Projects X onto the networks within a budget of bits, by the error of their layers' outputs.

    Args:
        points: X, float tensors of two or more dimensions each.
        budget_bits: as of `project_to_bits`.
        feedback: of each layer; None = as if its inputs were uncorrelated and alike, and its outputs counted one.
        previous: state of the last such projection, for a warm start.

    Returns:
        The projection; `error` is tr G (V - X) H (V - X)^T over all layers. Where no pass is within the budget, that of
        `project_to_bits`.
    """
    compiled = compiles(points)
    layers = [_Layer.of(x, its, compiled) for x, its in zip(points, feedback, strict=True)]
    state = _start(points, [layer.scale for layer in layers], budget_bits) if previous is None else previous
    multiplier, tables = state.multiplier, state.tables
    best: _Pass | None = None
    since = 0  # the error has last fallen
    for _ in range(ROUNDS):
        found = _filled(partial(_pass, layers, points, tables), budget_bits, multiplier)
        if found is None:
            break
        since = 0 if best is None or found.error < best.error * (1 - MIN_IMPROVEMENT) else since + 1
        best = found if best is None or found.error < best.error else best
        if since == PATIENCE:
            break
        multiplier, tables = found.multiplier, found.fitted
    if best is not None:
        return BitsProjection(best.quantized, best.bits, best.error, WarmStart(best.multiplier, best.fitted))
    return project_to_bits(points, budget_bits)


def _start(points: Sequence[Tensor], scales: Sequence[float], budget_bits: float) -> WarmStart:
    """Returns multiplier and tables of the projection of layers whose errors count the square of a scale.

    Values that turn out not to be worth their place go, but none come: where layers count differently it is the
    projection to twice the budget, and there are values on both sides of zero.
    """
    if all(scale == 1 for scale in scales):
        return project_to_bits(points, budget_bits).state
    scaled = [x if scale == 1 else x.detach().float() * scale for x, scale in zip(points, scales, strict=True)]
    state = project_to_bits(scaled, RICHER * budget_bits).state
    return WarmStart(state.multiplier, [_two_sided(*pair) for pair in zip(state.tables, scales, strict=True)])


def _two_sided(tables: LayerTables, scale: float) -> LayerTables:
    """Returns tables with their values over a scale, and their negatives where all are of one sign."""
    values, lengths = tables.values.cpu() / scale, tables.lengths
    if values.numel() and bool((values > 0).all() | (values < 0).all()):
        bits = lengths.code_bits.cpu() + 1
        values, order = torch.cat([values, -values]).sort()
        lengths = replace(lengths, code_bits=torch.cat([bits, bits])[order])
    return LayerTables(round_codebook(values) if values.numel() else values, lengths)
