"""A target: weight data, as the literature counts it."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from autocompress.targets.amounts import decimal, refuse


@dataclass(frozen=True, init=False)
class WeightBits:
    """The weight data, bits times nonzeros summed over the compressed tensors, is at most this.

    Positions, codebooks, biases and norm parameters do not count (Yang et al. 2020, section 3): for comparing with
    the literature, not for fitting a file into a place.

    Attributes:
        bits: the limit in bits, or None where a factor was given.
        factor: how many times less than 32 bits per compressible weight, at least 1, or None.
        in_place: run the published algorithm as it was published, which also prunes the network that is being trained,
            at the target from the start. It loses more accuracy; it is there to compare with.
    """

    bits: int | None
    factor: Fraction | None
    in_place: bool

    def __init__(
        self, *, bits: int | None = None, factor: float | Fraction | None = None, in_place: bool = False
    ) -> None:
        """Sets the limit; exactly one of `bits` and `factor` is given.

        Raises:
            InvalidInputError: none or both are given, `bits` is not a whole number above zero, `factor` is below 1.
        """
        if (bits is None) == (factor is None):
            refuse(
                f"WeightBits({bits=}, {factor=})", "exactly one of bits and factor is needed, WeightBits(factor=836)"
            )
        if bits is not None and (isinstance(bits, bool) or not isinstance(bits, int) or bits < 1):
            refuse(bits, "weight data takes a whole number of bits above zero")
        numeric = isinstance(factor, int | float | Fraction)
        if factor is not None and not (numeric and 1 <= factor < float("inf")):  # also refuses nan
            refuse(factor, "a factor is a number of at least 1")
        object.__setattr__(self, "bits", bits)
        # By way of its shortest decimal form: 0.1 means one tenth, not the double nearest to it.
        object.__setattr__(self, "factor", None if factor is None else Fraction(str(factor)))
        object.__setattr__(self, "in_place", in_place)

    def __str__(self) -> str:
        """Returns the target in the grammar; `parse_target` of it is equal to this one."""
        word = "weights-in-place" if self.in_place else "weights"
        return f"{word}:{self.bits}bits" if self.factor is None else f"{word}:{decimal(self.factor)}x"

    def resolve(self, original_bytes: int, compressible_weights: int) -> int:
        """Returns the budget in bits, rounded down.

        Args:
            original_bytes: not used by this target.
            compressible_weights: number of elements of the tensors that are compressed.
        """
        if self.bits is not None:
            return self.bits
        assert self.factor is not None
        return int(32 * compressible_weights / self.factor)
