"""What is asked of the compressor, and the grammar in which it is said.

    50KB  50KiB  1.5MB  4000B     the file, everything in it (1 KB = 1000 bytes, 1 KiB = 1024 bytes)
    1%  100x                      the file, as a part of the original float32 tensors
    weights:836x  weights:6498bits    weight data, the literature's count: bits times nonzeros, nothing else
    weights-in-place:836x             the same by the published algorithm, to compare with

The same strings serve in Python and on the command line; upper and lower case mean the same.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import NoReturn

from autocompress.errors import InvalidInputError

BYTES_PER_UNIT = {
    "B": 1,
    "KB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
    "KiB": 1024,
    "MiB": 1024**2,
    "GiB": 1024**3,
}
# Promised by the design, said so instead of "unknown" so that nobody hunts for a typing error.
NOT_YET_AVAILABLE = ("energy", "drop", "loss")
EXAMPLES = '"50KB", "50KiB", "1%", "100x" (of the original float32 tensors) or "weights:836x"'

_NUMBER_AND_UNIT = re.compile(r"(\d{1,18}(?:\.\d{0,40})?|\.\d{1,40})\s*(%|[a-z]+)", re.IGNORECASE | re.ASCII)


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
        if isinstance(size, bool) or not isinstance(size, int | str):
            _refuse(size, "a file size is a string or a whole number of bytes")
        amount, unit = (Fraction(size), "B") if isinstance(size, int) else _split(size, size)
        size_bytes, fraction = None, None
        names = {name.lower(): name for name in BYTES_PER_UNIT}
        if unit in ("%", "x"):
            fraction = _fraction_of_original(size, amount, unit)
        elif unit.lower() in names:
            unit = names[unit.lower()]
            size_bytes = int(amount * BYTES_PER_UNIT[unit])
            if size_bytes < 1:
                _refuse(size, "a file has at least one byte")
        else:
            _refuse(size, f"{unit!r} is no unit of a file size ({', '.join(BYTES_PER_UNIT)}, % or x)")
        object.__setattr__(self, "size_bytes", size_bytes)
        object.__setattr__(self, "fraction", fraction)
        object.__setattr__(self, "text", _decimal(amount) + unit)

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
            _refuse(
                f"WeightBits({bits=}, {factor=})", "exactly one of bits and factor is needed, WeightBits(factor=836)"
            )
        if bits is not None and (isinstance(bits, bool) or not isinstance(bits, int) or bits < 1):
            _refuse(bits, "weight data takes a whole number of bits above zero")
        numeric = isinstance(factor, int | float | Fraction)
        if factor is not None and not (numeric and 1 <= factor < float("inf")):  # also refuses nan
            _refuse(factor, "a factor is a number of at least 1")
        object.__setattr__(self, "bits", bits)
        # By way of its shortest decimal form: 0.1 means one tenth, not the double nearest to it.
        object.__setattr__(self, "factor", None if factor is None else Fraction(str(factor)))
        object.__setattr__(self, "in_place", in_place)

    def __str__(self) -> str:
        """Returns the target in the grammar; `parse_target` of it is equal to this one."""
        word = "weights-in-place" if self.in_place else "weights"
        return f"{word}:{self.bits}bits" if self.factor is None else f"{word}:{_decimal(self.factor)}x"

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


Target = FileSize | WeightBits


def parse_target(target: str | Target) -> Target:
    """Returns the target that a string of the grammar means; a target is returned as it is.

    >>> parse_target("50KB").resolve(original_bytes=1_726_320, compressible_weights=430_500)
    50000
    >>> parse_target("weights:836x").resolve(original_bytes=1_726_320, compressible_weights=430_500)
    16478

    Raises:
        InvalidInputError: the string is not of the grammar; the message names it and shows right ones.
    """
    if isinstance(target, FileSize | WeightBits):
        return target
    if not isinstance(target, str):
        _refuse(target, "a target is a string, FileSize or WeightBits")
    word, colon, rest = target.strip().partition(":")
    if not colon:
        return FileSize(target)
    if word.lower() in NOT_YET_AVAILABLE:
        _refuse(target, f"{word.lower()}: targets are not available yet")
    if word.lower() not in ("weights", "weights-in-place"):
        _refuse(target, f"{word!r} is no kind of target")
    amount, unit = _split(target, rest)
    in_place = word.lower() == "weights-in-place"
    if unit == "x":
        if amount < 1:
            _refuse(target, "a factor is at least 1")
        return WeightBits(factor=amount, in_place=in_place)
    if unit.lower() in ("bit", "bits") and amount >= 1 and amount.denominator == 1:
        return WeightBits(bits=int(amount), in_place=in_place)
    _refuse(target, "weight data is given as a factor (weights:836x) or as a whole number of bits (weights:6498bits)")


def only_target(targets: str | Target | Sequence[str | Target]) -> Target:
    """Returns the one target of a target or a sequence of them.

    Raises:
        InvalidInputError: there is none, there are several (not yet supported together), or it is not of the grammar.
    """
    if not isinstance(targets, Sequence) or isinstance(targets, str):
        return parse_target(targets)
    if not targets:
        _refuse(list(targets), "a target is needed")
    parsed = list(dict.fromkeys(parse_target(target) for target in targets))
    if len(parsed) > 1:
        _refuse(" and ".join(map(str, parsed)), "several targets together are not supported yet; give one")
    return parsed[0]


def _split(whole: object, text: str) -> tuple[Fraction, str]:
    """Returns (amount, unit) of `text`, or raises naming `whole`."""
    match = _NUMBER_AND_UNIT.fullmatch(text.strip())
    if match is None:
        _refuse(whole, "a number above zero and a unit are needed")
    amount, unit = Fraction(match[1]), match[2]
    if amount == 0:
        _refuse(whole, "the number must be above zero")
    return amount, unit.lower() if unit in "xX" else unit


def _fraction_of_original(whole: object, amount: Fraction, unit: str) -> Fraction:
    """Returns `1%` as 1/100 and `100x` as 1/100; more than the original is refused."""
    fraction = amount / 100 if unit == "%" else 1 / amount
    if fraction > 1:
        _refuse(whole, "that is more than the original; at most 100% or at least 1x")
    return fraction


def _decimal(number: Fraction) -> str:
    """Returns the number without exponent, as short as exact decimals allow; `a/b` has no place in the grammar."""
    if number.denominator == 1:
        return str(number.numerator)
    digits = 0
    while (number * 10**digits).denominator != 1 and digits < 40:
        digits += 1
    whole, rest = divmod(int(number * 10**digits), 10**digits)
    return f"{whole}.{rest:0{digits}d}"


def _refuse(value: object, reason: str) -> NoReturn:
    """Raises InvalidInputError for a target."""
    raise InvalidInputError(f"cannot use the target {value!r}: {reason}. Write for example {EXAMPLES}.")
