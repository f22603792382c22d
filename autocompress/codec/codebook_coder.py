"""The values of a codebook in the stream: integers times one step, ascending, so that only the gaps are coded."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from autocompress.codec.adaptive_models import Integers, Symbols
from autocompress.codec.range_coder import Array, Coder
from autocompress.errors import CorruptArtifactError, InvalidInputError
from autocompress.network.compressed_tensors import NARROW_CODEBOOK, codebook_step

# The smallest normal number, in float32 and in bfloat16.
MIN_STEP = 2.0**-126


@dataclass
class CodebookModels:
    """What is learned from one codebook, or one grid's step, to the next.

    Attributes:
        sizes: differences of the number of values.
        steps: differences of the upper halves of the steps as float32 patterns.
        firsts: whether the first value is the lowest integer there is.
        gaps: differences of neighbouring values, in steps.
    """

    sizes: Integers = field(default_factory=Integers)
    steps: Integers = field(default_factory=Integers)
    firsts: Symbols = field(default_factory=lambda: Symbols(2))
    gaps: Integers = field(default_factory=lambda: Integers(signed=False))
    last_size: int = 7
    last_step: int = 0x3C00


def code_codebook(coder: Coder, name: str, values: Tensor | None, models: CodebookModels) -> tuple[Tensor, Array]:
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


def code_step(coder: Coder, step: float, models: CodebookModels, *, narrow: bool) -> float:
    """Codes a step: the upper half of its float32 against the last one's, and the lower half if not narrow.

    Raises:
        InvalidInputError: the step is not a positive normal float32 number.
        CorruptArtifactError: the same, when decoding.
    """
    if coder.chooses and not MIN_STEP <= step < math.inf:
        raise InvalidInputError(f"step {step} must be a finite number of at least 2**-126")
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
