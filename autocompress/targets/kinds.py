"""A target: the size of the file."""

from __future__ import annotations

import numbers
from dataclasses import dataclass, field
from fractions import Fraction

from autocompress.targets.amounts import decimal, refuse, split

BYTES_PER_UNIT = {
    "B": 1,
    "KB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
    "KiB": 1024,
    "MiB": 1024**2,
    "GiB": 1024**3,
}


@dataclass(frozen=True, init=False)
class FileSize:
    """The written file, everything in it, is at most this large.

    Two sizes are equal if they ask the same, however they were written: `FileSize("50KB") == FileSize(50_000)`.

    Attributes:
        size_bytes: the limit in bytes, or None where it is a part of the original.
        fraction: the limit as a part of the original float32 tensors, in (0, 1], or None.
        text: as it was asked, in the grammar of this module.
    """

    size_bytes: int | None
    fraction: Fraction | None
    text: str = field(compare=False)

    def __init__(self, size: str | int) -> None:
        """Sets the limit: a number of bytes, or a string such as `50KB`, `50KiB`, `1%`, `100x`.

        Raises:
            InvalidInputError: the string is not of the grammar, or the limit is not above zero.
        """
        if isinstance(size, bool) or not isinstance(size, numbers.Integral | str):
            refuse(size, "a file size is a string or a whole number of bytes")
        amount, unit = (Fraction(int(size)), "B") if isinstance(size, numbers.Integral) else split(size, size, "50KB")
        size_bytes, fraction = None, None
        names = {name.lower(): name for name in BYTES_PER_UNIT}
        if unit in ("%", "x"):
            fraction = _fraction_of_original(size, amount, unit)
        elif unit.lower() in names:
            unit = names[unit.lower()]
            size_bytes = int(amount * BYTES_PER_UNIT[unit])
            if size_bytes < 1:
                refuse(size, "a file has at least one byte")
        else:
            refuse(size, f"{unit!r} is no unit of a file size ({', '.join(BYTES_PER_UNIT)}, % or x)")
        object.__setattr__(self, "size_bytes", size_bytes)
        object.__setattr__(self, "fraction", fraction)
        object.__setattr__(self, "text", decimal(amount) + unit)

    def __str__(self) -> str:
        """Returns the target in the grammar; `parse_target` of it is equal to this one."""
        return self.text

    def resolve(self, original_bytes: int, compressible_weights: int) -> int:
        """Returns the budget in bytes, rounded down.

        Args:
            original_bytes: 4 bytes per floating-point element of the whole state_dict, shared storage once.
            compressible_weights: not used by this target.
        """
        if self.size_bytes is not None:
            return self.size_bytes
        assert self.fraction is not None
        return int(original_bytes * self.fraction)


def _fraction_of_original(whole: object, amount: Fraction, unit: str) -> Fraction:
    """Returns `1%` as 1/100 and `100x` as 1/100; more than the original is refused."""
    fraction = amount / 100 if unit == "%" else 1 / amount
    if fraction > 1:
        refuse(whole, "that is more than the original; at most 100% or at least 1x")
    return fraction
