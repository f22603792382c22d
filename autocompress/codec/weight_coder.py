"""One compressed weight tensor in the stream: codebook, row classes, positions, codes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from autocompress.codec.adaptive_models import Symbols, code_codes
from autocompress.codec.codebook_coder import CodebookModels, code_codebook
from autocompress.codec.positions import (
    BLOCK_PART,
    COLUMN_PRIORS,
    GROUP_PRIORS,
    STARTS,
    PositionModels,
    code_flags,
    code_rows,
    starts,
)
from autocompress.codec.range_coder import Array, Coder, Codes, Flags
from autocompress.errors import CorruptArtifactError, InvalidInputError
from autocompress.network.compressed_tensors import QuantizedTensor

# Kernels with more taps than this are seen as columns without neighbours.
_MAX_TAPS = 256
Geometry = tuple[int, int, int, int]


def parent_of(groups: int, live: Sequence[Array]) -> Array | None:
    """Returns the nonzeros per row of the last tensor with as many rows as there are groups, or None."""
    return next((counts for counts in reversed(live) if len(counts) == groups > 1), None)


def geometry_of(shape: tuple[int, ...], view: int, live: Sequence[Array]) -> Geometry | None:
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
    for rows_live in reversed(live):
        channels = len(rows_live)
        if channels > 1 and groups % channels == 0 and 1 < groups // channels <= _MAX_TAPS:
            each = groups // channels
            side = math.isqrt(each)
            return (rows, channels, side, side) if side * side == each else (rows, channels, 1, each)
    return None


def view_as(codes: Codes, view: int, geometry: Geometry) -> Codes:
    """Returns codes of any shape as kernels [R, G, H, W]."""
    if view == 2:
        return codes.reshape(geometry[1], geometry[0]).T.reshape(geometry)
    return codes.reshape(geometry)


def view_back(kernels: Codes, view: int, shape: tuple[int, ...]) -> Codes:
    """Returns kernels [R, G, H, W] in the shape of their parameter."""
    if view == 2:
        return np.ascontiguousarray(kernels.reshape(kernels.shape[:2]).T).reshape(shape)
    return kernels.reshape(shape)


# The choice between models is made on about this many elements of a tensor, in blocks larger than the stream's.
_TRIAL_ELEMENTS = 1 << 18
_TRIAL_PART = 2


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
        chosen: how each tensor's positions are modelled, by name; where there is none, it is chosen and added.
    """

    codebooks: CodebookModels = field(default_factory=CodebookModels)
    choices: dict[str, Symbols] = field(default_factory=lambda: {key: Symbols(size) for key, size in _SIZES.items()})
    codes: Symbols | None = None
    positions: PositionModels = field(default_factory=PositionModels)
    live: list[Array] = field(default_factory=list)
    chosen: dict[str, Choice] = field(default_factory=dict)


def code_weight(
    coder: Coder, name: str, shape: tuple[int, ...], tensor: QuantizedTensor | None, models: WeightModels
) -> QuantizedTensor:
    """Codes one tensor; `tensor` is None when decoding. Returns it.

    Raises:
        InvalidInputError: codes that no codebook value has, or values that are not on their grid.
        CorruptArtifactError: the stream holds no such tensor.
    """
    coder.part("codebook", name)
    values, integers = code_codebook(coder, name, None if tensor is None else tensor.values, models.codebooks)
    codes = np.zeros(shape, np.int16)
    if tensor is not None:
        codes = tensor.codes.detach().cpu().contiguous().numpy().astype(np.int16)
        if codes.size and (int(codes.min()) < 0 or int(codes.max()) > len(values)):
            raise InvalidInputError(f"{name}: codes must be in 0..{len(values)}, the size of the codebook")
    if codes.size and len(values):
        codes = _code_elements(coder, name, codes, integers, models)
    rows = shape[0] if shape else 1
    models.live.append(np.count_nonzero(codes.reshape(rows, codes.size // max(1, rows)), axis=1))
    return QuantizedTensor(torch.from_numpy(codes.copy()), values)


def _code_elements(coder: Coder, name: str, codes: Codes, integers: Array, models: WeightModels) -> Codes:
    """Codes positions and codes of a tensor [...] of int16. Returns it."""
    coder.part("positions", name)
    choice = Choice()
    if coder.chooses:
        if name not in models.chosen:
            models.chosen[name] = _choose(coder, codes, models)
        choice = models.chosen[name]
    for key, model in models.choices.items():
        index = model.code(coder, np.array([getattr(choice, key)], np.int64))
        choice = replace(choice, **{key: int(index[0])})
    geometry = geometry_of(codes.shape, choice.view, models.live)
    if geometry is None:
        raise CorruptArtifactError(f"{name}: the file asks for a view that its shape does not have")
    kernels = view_as(codes, choice.view, geometry).copy()
    mask = (kernels != 0).astype(np.int8)
    _code_positions(coder, mask, choice, models)
    models.positions.fade()
    if not coder.chooses:
        kernels = mask.astype(np.int16)
    coder.part("codes", name)
    models.codes = code_codes(coder, kernels, integers, models.codes)
    return view_back(kernels, choice.view, codes.shape)


def _code_positions(coder: Coder, mask: Flags, choice: Choice, models: WeightModels) -> None:
    classes = _code_rows(coder, mask)
    _code_live(coder, mask, classes, choice, models, BLOCK_PART)


def _code_rows(coder: Coder, mask: Flags) -> Array:
    """Codes the classes of the rows [R] of flags [R, G, H, W] and returns them."""
    rows = mask.reshape(len(mask), -1)
    return code_rows(coder, rows.sum(1).astype(np.int64), rows.shape[1])


def _code_live(coder: Coder, mask: Flags, classes: Array, choice: Choice, models: WeightModels, part: int) -> None:
    """Codes flags [R, G, H, W] in place, of rows of known classes."""
    groups = mask.shape[1]
    parent = parent_of(groups, models.live) if choice.start else np.zeros(groups, np.int64)
    if parent is None:
        raise CorruptArtifactError("the file refers to a tensor that it does not hold")
    code_flags(
        coder,
        mask,
        classes,
        models.positions,
        group_start=starts(parent, choice.start),
        priors=(COLUMN_PRIORS[choice.column], GROUP_PRIORS[choice.group]),
        neighbours=bool(choice.neighbours),
        part=part,
    )


def _choose(coder: Coder, codes: Codes, models: WeightModels) -> Choice:
    """Returns the choice of the shortest positions, by trying one table after another."""
    # Flags, classes of rows and bits of these, by view: nothing else changes them.
    views: dict[int, tuple[Flags, Array, float]] = {}

    def length(choice: Choice) -> float:
        geometry = geometry_of(codes.shape, choice.view, models.live)
        if geometry is None or (choice.start and parent_of(geometry[1], models.live) is None):
            return math.inf
        if choice.neighbours and geometry[2] * geometry[3] == 1:
            return math.inf
        if choice.view not in views:
            kernels = view_as(codes, choice.view, geometry)
            mask = (kernels[:: -(-kernels.size // _TRIAL_ELEMENTS)] != 0).astype(np.int8)
            meter = coder.meter()
            classes = _code_rows(meter, mask)
            views[choice.view] = mask, classes, meter.total_bits
        mask, classes, bits = views[choice.view]
        meter = coder.meter()
        learning = replace(models, positions=models.positions.copy())
        _code_live(meter, mask, classes, choice, learning, _TRIAL_PART)
        return bits + meter.total_bits

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
