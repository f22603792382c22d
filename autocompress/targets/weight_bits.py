"""A target: weight data, as the literature counts it."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from autocompress.targets.bit_count import BitCount


@dataclass(frozen=True, init=False)
class WeightBits(BitCount):
    """The weight data, bits times nonzeros summed over the compressed tensors, is at most this.

    Positions, codebooks, biases and norm parameters do not count (Yang et al. 2020, section 3): for comparing with
    the literature, not for fitting a file into a place.

    Attributes:
        in_place: run the published algorithm as it was published, which also prunes the network that is being trained,
            at the target from the start. It loses more accuracy; it is there to compare with.
    """

    in_place: bool

    def __init__(
        self, *, bits: int | None = None, factor: float | Fraction | None = None, in_place: bool = False
    ) -> None:
        """Sets the limit as `BitCount` does."""
        super().__init__(bits=bits, factor=factor)
        object.__setattr__(self, "in_place", in_place)

    @property
    def word(self) -> str:
        """What the grammar calls it."""
        return "weights-in-place" if self.in_place else "weights"
