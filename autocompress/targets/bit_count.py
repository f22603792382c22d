"""What the targets have in common that count bits of the weights alone."""

from __future__ import annotations

import numbers
from abc import abstractmethod
from dataclasses import dataclass
from fractions import Fraction

from autocompress.targets.amounts import decimal, refuse


@dataclass(frozen=True, init=False)
class BitCount:
    """A limit in bits, or in bits per compressible weight.

    Attributes:
        bits: the limit in bits, or None where a factor was given.
        factor: how many times less than 32 bits per compressible weight, at least 1, or None.
    """

    bits: int | None
    factor: Fraction | None

    def __init__(self, *, bits: int | None = None, factor: float | Fraction | None = None) -> None:
        """Sets the limit; exactly one of `bits` and `factor` is given.

        Raises:
            InvalidInputError: none or both are given, `bits` is not a whole number above zero, `factor` is below 1.
        """
        if (bits is None) == (factor is None):
            name = type(self).__name__
            refuse(f"{name}({bits=}, {factor=})", f"exactly one of bits and factor is needed, {name}(factor=836)")
        if bits is not None and (isinstance(bits, bool) or not isinstance(bits, numbers.Integral) or bits < 1):
            refuse(bits, "this target takes a whole number of bits above zero")
        numeric = isinstance(factor, numbers.Real)
        if factor is not None and not (numeric and 1 <= factor < float("inf")):  # also refuses nan
            refuse(factor, "a factor is a number of at least 1")
        object.__setattr__(self, "bits", None if bits is None else int(bits))
        # By way of its shortest decimal form: 0.1 means one tenth, not the double nearest to it.
        object.__setattr__(self, "factor", None if factor is None else Fraction(str(factor)))

    @property
    @abstractmethod
    def word(self) -> str:
        """What the grammar calls it."""

    def __str__(self) -> str:
        """Returns the target in the grammar; `parse_target` of it is equal to this one."""
        return f"{self.word}:{self.bits}bits" if self.factor is None else f"{self.word}:{decimal(self.factor)}x"

    def resolve(self, original_bytes: int, compressible_weights: int) -> int:
        """Returns the budget in bits, rounded down.

        Args:
            original_bytes: not used by these targets.
            compressible_weights: number of elements of the tensors that are compressed.
        """
        if self.bits is not None:
            return self.bits
        assert self.factor is not None
        return int(32 * compressible_weights / self.factor)
