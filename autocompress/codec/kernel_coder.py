"""One weight tensor with a codebook of kernels in the stream: length, size, step, entries, codes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch

from autocompress.codec.adaptive_models import Integers, Symbols, blocks
from autocompress.codec.codebook_coder import code_step
from autocompress.codec.range_coder import Array, Coder
from autocompress.codec.weight_coder import WeightModels
from autocompress.errors import CorruptArtifactError, InvalidInputError
from autocompress.network.compressed_tensors import WeightTensor
from autocompress.network.kernel_tensor import MAX_CODEWORDS, MAX_LENGTH, TOP_LEVEL, KernelTensor

# An entry's context is that of the one before it in the kernel: clearly negative, negative, zero, and so on.
_CONTEXTS = 5
_CLEAR = 6


@dataclass
class KernelModels:
    """What is learned from one codebook of kernels to the next.

    Attributes:
        kinds: whether a tensor has one.
        lengths: differences of the elements per vector.
        sizes: differences of log2 of the number of codewords, rounded up; of what is missing to it, the bits follow.
        entries: levels + 31, in the context of the one before.
    """

    kinds: Symbols = field(default_factory=lambda: Symbols(2))
    lengths: Integers = field(default_factory=Integers)
    sizes: Integers = field(default_factory=Integers)
    entries: Symbols = field(default_factory=lambda: Symbols(2 * TOP_LEVEL + 1, _CONTEXTS))
    last_length: int = 9
    last_width: int = 6


def code_kind(coder: Coder, name: str, tensor: WeightTensor | None, models: KernelModels) -> bool:
    """Codes whether a tensor has a codebook of kernels; `tensor` is None when decoding. Returns it."""
    coder.part("header", name)
    return bool(models.kinds.code(coder, np.array([isinstance(tensor, KernelTensor)], np.int64))[0])


def code_kernels(
    coder: Coder,
    name: str,
    shape: tuple[int, ...],
    tensor: KernelTensor | None,
    models: KernelModels,
    weights: WeightModels,
) -> KernelTensor:
    """Codes one tensor; `tensor` is None when decoding. Returns it.

    Raises:
        InvalidInputError: codes that no codeword has, or levels or a step that the format does not hold.
        CorruptArtifactError: the stream holds no such tensor.
    """
    if tensor is not None:
        _check(name, tensor)
    coder.part("codebook", name)
    elements = math.prod(shape)
    length, codewords = _code_size(coder, name, elements, tensor, models)
    step = code_step(coder, 0.0 if tensor is None else tensor.step, weights.codebooks, narrow=True)
    if tensor is not None and tensor.step != step:
        raise InvalidInputError(f"{name}: step {tensor.step} must be a positive bfloat16 number")
    levels = np.zeros((codewords, length), np.int64)
    if tensor is not None:
        levels = tensor.levels.detach().cpu().numpy().astype(np.int64)
    levels = _code_entries(coder, levels, models)
    coder.part("codes", name)
    codes = np.zeros(elements // length, np.int64)
    if tensor is not None:
        codes = tensor.codes.detach().cpu().numpy().astype(np.int64)
    model = Symbols(codewords)
    for block in blocks(len(codes), 1):
        codes[block] = model.code(coder, codes[block])
    weights.live.append((levels != 0)[codes].reshape(shape[0] if shape else 1, -1).sum(1))
    return KernelTensor(
        torch.from_numpy(codes.astype(np.int16)), torch.from_numpy(levels.astype(np.int16)), step, shape
    )


def _code_size(
    coder: Coder, name: str, elements: int, tensor: KernelTensor | None, models: KernelModels
) -> tuple[int, int]:
    """Codes (elements per vector, codewords)."""
    length, codewords = (1, 1) if tensor is None else (tensor.length, tensor.codewords)
    length = models.last_length + models.lengths.code_one(coder, length - models.last_length)
    width = (codewords - 1).bit_length()
    width = models.last_width + models.sizes.code_one(coder, width - models.last_width)
    fits = 1 <= length <= MAX_LENGTH and elements and elements % length == 0
    if not fits or not 0 <= width < MAX_CODEWORDS.bit_length():
        raise CorruptArtifactError(f"{name}: {elements} weights in vectors of {length} with codes of {width} bits")
    missing = int(coder.bits(width, np.array([(1 << width) - codewords], np.int64))[0])
    codewords = (1 << width) - missing
    if codewords > elements // length:
        raise CorruptArtifactError(f"{name}: {codewords} codewords for {elements // length} vectors")
    models.last_length, models.last_width = length, width
    return length, codewords


def _code_entries(coder: Coder, levels: Array, models: KernelModels) -> Array:
    """Codes the codebook [K, d], one place in the kernel after another. Returns it."""
    levels = levels.copy()
    before = np.zeros(len(levels), np.int64)
    for place in range(levels.shape[1]):
        context = np.sign(before) + np.sign(before) * (np.abs(before) > _CLEAR) + 2
        for block in blocks(len(levels), 1):
            symbols = levels[block, place] + TOP_LEVEL
            levels[block, place] = models.entries.code(coder, symbols, context[block]) - TOP_LEVEL
        before = levels[:, place]
    models.entries.fade()
    return levels


def _check(name: str, tensor: KernelTensor) -> None:
    """Raises InvalidInputError for a tensor that the format does not hold."""
    codewords, length = tensor.levels.shape
    elements = math.prod(tensor.shape)
    if not 1 <= length <= MAX_LENGTH or tensor.codes.shape != (elements // length,) or elements % length:
        raise InvalidInputError(f"{name}: {tensor.codes.numel()} vectors of {length} are no tensor of {tensor.shape}")
    if not 1 <= codewords <= min(MAX_CODEWORDS, tensor.codes.numel()):
        raise InvalidInputError(f"{name}: {codewords} codewords; 1 to {MAX_CODEWORDS} fit, and no more than vectors")
    if int(tensor.codes.min()) < 0 or int(tensor.codes.max()) >= codewords:
        raise InvalidInputError(f"{name}: codes must be in 0..{codewords - 1}, the size of the codebook")
    if int(tensor.levels.abs().max()) > TOP_LEVEL:
        raise InvalidInputError(f"{name}: entries must be within {TOP_LEVEL}, {2 * TOP_LEVEL + 1} levels")
