"""One compressed weight tensor in the stream: codebook, row classes, positions, codes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from autocompress.codebooks import NARROW_CODEBOOK, CodedTensor, codebook_step
from autocompress.coding.codes import code_codes
from autocompress.coding.integers import Integers, Symbols
from autocompress.coding.positions import (
    COLUMN_PRIORS,
    GROUP_PRIORS,
    STARTS,
    PositionModels,
    code_flags,
    code_rows,
    starts,
)
from autocompress.coding.stream import Array, Coder, Codes, Flags, Meter
from autocompress.errors import CorruptArtifactError, InvalidInputError

# Kernels with more taps than this are seen as columns without neighbours.
_MAX_TAPS = 256
# The choice between models is made on about this many elements of a tensor.
_TRIAL_ELEMENTS = 1 << 18


@dataclass(frozen=True)
class Choice:
    """How the positions of a tensor are modelled: indices into tables, all of them in the stream.

    Attributes:
        view: 0 the tensor's own shape, 1 columns grouped by the rows of an earlier tensor, 2 transposed.
        neighbours: 1 where taps are coded in the context of their neighbours.
        start: how `starts` makes the groups differ at first.
        column: index into `COLUMN_PRIORS`.
        group: index into `GROUP_PRIORS`.
    """

    view: int = 0
    neighbours: int = 0
    start: int = 0
    column: int = 0
    group: int = 0


_SIZES = {
    "view": 3,
    "neighbours": 2,
    "start": STARTS,
    "column": len(COLUMN_PRIORS),
    "group": len(GROUP_PRIORS),
}


@dataclass
class WeightModels:
    """What is learned from one weight tensor to the next.

    Attributes:
        live: for the tensors so far, the nonzeros of each row (int64 [rows]).
    """

    sizes: Integers = field(default_factory=Integers)
    steps: Integers = field(default_factory=Integers)
    firsts: Symbols = field(default_factory=lambda: Symbols(2))
    gaps: Integers = field(default_factory=lambda: Integers(signed=False))
    choices: dict[str, Symbols] = field(default_factory=lambda: {key: Symbols(size) for key, size in _SIZES.items()})
    codes: Symbols | None = None
    positions: PositionModels = field(default_factory=PositionModels)
    live: list[Array] = field(default_factory=list)
    last_size: int = 7
    last_step: int = 0x3C00


def code_weight(
    coder: Coder, name: str, shape: tuple[int, ...], tensor: CodedTensor | None, models: WeightModels
) -> CodedTensor:
    """Codes one tensor; `tensor` is None when decoding. Returns it.

    Raises:
        InvalidInputError: codes that no codebook value has, or values that are not on their grid.
        CorruptArtifactError: the stream holds no such tensor.
    """
    coder.part("codebook", name)
    values, integers = _code_codebook(coder, name, None if tensor is None else tensor.values, models)
    codes = np.zeros(shape, np.int16)
    if tensor is not None:
        codes = tensor.codes.detach().cpu().contiguous().numpy().astype(np.int16)
        if codes.size and (int(codes.min()) < 0 or int(codes.max()) > len(values)):
            raise InvalidInputError(f"{name}: codes must be in 0..{len(values)}, the size of the codebook")
    if codes.size and len(values):
        codes = _code_elements(coder, name, codes, integers, models)
    rows = shape[0] if shape else 1
    models.live.append(np.count_nonzero(codes.reshape(rows, codes.size // max(1, rows)), axis=1))
    return CodedTensor(torch.from_numpy(codes.copy()), values)


def _code_elements(coder: Coder, name: str, codes: Codes, integers: Array, models: WeightModels) -> Codes:
    """Codes positions and codes of a tensor [...] of int16. Returns it."""
    coder.part("positions", name)
    choice = _choose(codes, models) if coder.chooses else Choice()
    for key, model in models.choices.items():
        index = model.code(coder, np.array([getattr(choice, key)], np.int64))
        choice = replace(choice, **{key: int(index[0])})
    geometry = geometry_of(codes.shape, choice.view, models)
    if geometry is None:
        raise CorruptArtifactError(f"{name}: the file asks for a view that its shape does not have")
    kernels = _view(codes, choice.view, geometry).copy()
    mask = (kernels != 0).astype(np.int8)
    _code_positions(coder, mask, choice, models)
    models.positions.fade()
    if not coder.chooses:
        kernels = mask.astype(np.int16)
    coder.part("codes", name)
    models.codes = code_codes(coder, kernels, integers, models.codes)
    return _unview(kernels, choice.view, codes.shape)


def _code_positions(coder: Coder, mask: Flags, choice: Choice, models: WeightModels) -> None:
    """Codes flags [R, G, H, W] in place."""
    rows, groups, height, width = mask.shape
    classes = code_rows(coder, mask.reshape(rows, -1).sum(1).astype(np.int64), groups * height * width)
    parent = _parent(groups, models) if choice.start else np.zeros(groups, np.int64)
    if parent is None:
        raise CorruptArtifactError("the file refers to a tensor that it does not hold")
    start = starts(parent, choice.start)
    priors = (COLUMN_PRIORS[choice.column], GROUP_PRIORS[choice.group])
    code_flags(
        coder, mask, classes, models.positions, group_start=start, priors=priors, neighbours=bool(choice.neighbours)
    )


def _parent(groups: int, models: WeightModels) -> Array | None:
    """Returns the live rows of the last tensor with as many rows as there are groups."""
    return next((live for live in reversed(models.live) if len(live) == groups > 1), None)


def geometry_of(shape: tuple[int, ...], view: int, models: WeightModels) -> tuple[int, int, int, int] | None:
    """Returns (R, G, H, W) of a view, or None where a tensor of this shape has no such view."""
    shape = tuple(size for size in shape[:-1] if size > 1) + tuple(shape[-1:]) if len(shape) != 4 else shape
    shape = (1,) * (2 - len(shape)) + shape
    taps = shape[2:]
    height = taps[0] if len(taps) > 1 else 1
    width = math.prod(taps) // height if taps else 1
    rows, groups = shape[0], shape[1]
    if height * width > _MAX_TAPS:
        groups, height, width = groups * height * width, 1, 1
    if view == 0:
        return rows, groups, height, width
    if height * width > 1:
        return None
    if view == 2:
        return groups, rows, 1, 1
    for live in reversed(models.live):
        if len(live) > 1 and groups % len(live) == 0 and 1 < groups // len(live) <= _MAX_TAPS:
            taps_each = groups // len(live)
            side = math.isqrt(taps_each)
            return (rows, len(live), side, side) if side * side == taps_each else (rows, len(live), 1, taps_each)
    return None


def _view(codes: Codes, view: int, geometry: tuple[int, int, int, int]) -> Codes:
    if view == 2:
        return codes.reshape(geometry[1], geometry[0]).T.reshape(geometry)
    return codes.reshape(geometry)


def _unview(kernels: Codes, view: int, shape: tuple[int, ...]) -> Codes:
    if view == 2:
        return np.ascontiguousarray(kernels.reshape(kernels.shape[:2]).T).reshape(shape)
    return kernels.reshape(shape)


def _choose(codes: Codes, models: WeightModels) -> Choice:
    """Returns the choice of the shortest positions, by trying one table after another."""

    def length(choice: Choice) -> float:
        geometry = geometry_of(codes.shape, choice.view, models)
        if geometry is None or (choice.start and _parent(geometry[1], models) is None):
            return math.inf
        if choice.neighbours and geometry[2] * geometry[3] == 1:
            return math.inf
        mask = (_view(codes, choice.view, geometry) != 0).astype(np.int8)
        stride = -(-mask.size // _TRIAL_ELEMENTS)
        meter = Meter()
        _code_positions(meter, mask[::stride].copy(), choice, replace(models, positions=models.positions.copy()))
        return meter.total_bits

    best, bits = Choice(), length(Choice())
    tried = {best}
    for candidate in _candidates():
        trial = replace(best, **candidate)
        trial_bits = length(trial) if trial not in tried else math.inf
        tried.add(trial)
        if trial_bits < bits:
            best, bits = trial, trial_bits
    return best


def _candidates() -> Iterator[dict[str, int]]:
    for key in ("view", "start", "group", "column"):
        for index in range(1, _SIZES[key]):
            yield {key: index}
            if key == "start":
                yield {key: index, "view": 0}
    # Trying neighbours takes longest, and hardly depends on the rest.
    yield {"neighbours": 1}
    yield {"neighbours": 1, "view": 1}


def _code_codebook(coder: Coder, name: str, values: Tensor | None, models: WeightModels) -> tuple[Tensor, Array]:
    """Codes the values [K]. Returns (values, the same in units of their step)."""
    size = 0 if values is None else len(values)
    size = models.last_size + models.sizes.code_one(coder, size - models.last_size)
    if not 0 <= size <= 32767:
        raise CorruptArtifactError(f"{name}: a codebook of {size} values")
    models.last_size = size
    if size == 0:
        return torch.zeros(0), np.zeros(0, np.int64)
    step, integers = (0.0, np.zeros(size, np.int64)) if values is None else grid_of(name, values)
    top = 127 if size <= NARROW_CODEBOOK else 32767
    step = code_step(coder, step, models, narrow=top == 127)
    floor = int(models.firsts.code(coder, np.array([integers[0] == -top], np.int64))[0])
    width = 8 if top == 127 else 16
    first = -top if floor else int(coder.bits(width, integers[:1] + top)[0]) - top
    gaps = models.gaps.code(coder, np.diff(integers))
    integers = first + np.concatenate([np.zeros(1, np.int64), np.cumsum(gaps)])
    if int(np.abs(integers).max()) > top or not integers.all():
        raise CorruptArtifactError(f"{name}: a codebook value out of range")
    return torch.from_numpy(integers.astype(np.float32)) * step, integers


def code_step(coder: Coder, step: float, models: WeightModels, *, narrow: bool) -> float:
    """Codes a step: the upper half of its float32 against the last one's, and the lower half if not narrow."""
    pattern = int(np.array(step, np.float32).view(np.uint32))
    upper = models.last_step + models.steps.code_one(coder, (pattern >> 16) - models.last_step)
    lower = 0 if narrow else int(coder.bits(16, np.array([pattern & 0xFFFF], np.int64))[0])
    models.last_step = upper
    if not 0x0080 <= upper < 0x7F80:
        raise CorruptArtifactError("a step that is not a positive number")
    return float(np.array((upper << 16) | lower, np.uint32).view(np.float32))


def grid_of(name: str, values: Tensor) -> tuple[float, Array]:
    """Returns (step, integers [K]) that reproduce ascending codebook values exactly.

    Raises:
        InvalidInputError: there are none; `round_codebook` makes values that have them.
    """
    values = values.detach().cpu().float()
    step, top = codebook_step(values)
    # Rounding at 16 bits can move the step by one unit in the last place.
    for candidate in (step, *(float(np.nextafter(np.float32(step), np.float32(side))) for side in (0, np.inf))):
        integers = (values / candidate).round()
        if torch.equal(integers * candidate, values) and float(integers.abs().max()) <= top:
            integers_list = integers.numpy().astype(np.int64)
            if integers_list.all() and (np.diff(integers_list) >= 0).all():
                return candidate, integers_list
    raise InvalidInputError(f"{name}: codebook values must be ascending, not zero, and rounded by round_codebook")
