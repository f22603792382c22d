"""Which codebook value each nonzero of a weight tensor takes."""

from __future__ import annotations

import numpy as np

from autocompress.codec.adaptive_models import Symbols, blocks
from autocompress.codec.range_coder import Array, Coder, Codes

_CONTEXTS = 5
# Codebooks of more values have one context.
_LARGE = 256
# Observations carried over to the next tensor with a codebook of the same size.
_KEPT = 64


def code_codes(coder: Coder, codes: Codes, integers: Array, last: Symbols | None) -> Symbols:
    """Codes the nonzeros of a tensor in place, row block by row block and tap by tap.

    The context of a nonzero is, in five steps from clearly negative to clearly positive, the weighted sum of its
    neighbours before it in the same kernel (2 above + 2 left + 1 on each upper diagonal); where there are no taps, the
    sum of its column so far.

    Args:
        coder: the stream.
        codes: int16 [R, G, H, W], 0 where there is no nonzero and 1..K elsewhere (any positive number when decoding).
        integers: the codebook [K] in units of its step, which tells large from small and the signs.
        last: the model after the tensor before; part of it is kept where that had as many values.

    Returns:
        The model after this tensor.
    """
    size = len(integers)
    model = Symbols(size, _CONTEXTS if size <= _LARGE else 1)
    if last is not None and last.counts.shape == model.counts.shape:
        model.counts = last.counts
        model.fade(_KEPT)
    if size > _LARGE:
        codes = codes.reshape(len(codes), -1, 1, 1)  # the same memory: without contexts, taps need no order
    rows, groups, height, width = codes.shape
    table = np.concatenate([np.zeros(1, np.int64), integers])
    # |sum| is clear when above about 2.5 mean magnitudes: 2 * |sum| * K > 5 * sum of magnitudes.
    clear = int(np.abs(integers).sum()) * 5 // (2 * len(integers))
    spatial = height * width > 1
    columns = np.zeros((groups, height, width), np.int64)
    for block in blocks(rows, groups * height * width):
        part = codes[block]
        around = np.zeros((len(part), groups, height + 1, width + 2), np.int64)
        for i in range(height):
            for j in range(width):
                here = part[:, :, i, j]
                live = here > 0
                if not live.any():
                    continue
                if spatial:
                    total = 2 * (around[:, :, i, j + 1] + around[:, :, i + 1, j])
                    total = (total + around[:, :, i, j] + around[:, :, i, j + 2])[live]
                else:
                    total = np.broadcast_to(columns[:, i, j], live.shape)[live]
                context = np.sign(total) + np.sign(total) * (np.abs(total) > clear) + 2
                values = model.code(coder, here[live] - 1, context if size <= _LARGE else None) + 1
                here[live] = values
                around[:, :, i + 1, j + 1] = table[here]
        columns += table[part].sum(0)
    return model
