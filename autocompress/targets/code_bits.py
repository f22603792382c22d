"""A target: all that says what the weights are, in codes of fixed length."""

from __future__ import annotations

from dataclasses import dataclass

from autocompress.targets.bit_count import BitCount


@dataclass(frozen=True, init=False)
class CodeBits(BitCount):
    """Positions, codes and codebooks of the weights take at most this; biases and norm parameters do not count.

    The count of Kernel Quantization (Yu et al. 2020), under which a layer may have a codebook of whole kernels. Weight
    data leaves out positions and codebooks, which is what such a layer spends its bits on.
    """

    @property
    def word(self) -> str:
        """What the grammar calls it."""
        return "codes"
