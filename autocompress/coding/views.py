"""Weight tensors of any shape seen as kernels [R, G, H, W]: rows, groups and taps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from autocompress.codec.range_coder import Array, Codes

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
