"""The targets but for quality constraints: file size, weight data, code bits, energy."""

from __future__ import annotations

import numbers
import re
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import NoReturn, TypeVar

from autocompress.errors import InvalidInputError

EXAMPLES = (
    '"50KB", "50KiB", "1%", "100x" (of the original float32 tensors), "weights:836x", "codes:20x", "energy:40%", '
    '"energy-channels:40%", "drop:0.5" or "loss:+2%"'
)


_NUMBER_AND_UNIT = re.compile(r"(\d{1,18}(?:\.\d{0,40})?|\.\d{1,40})\s*(%|[a-z]+)", re.IGNORECASE | re.ASCII)


def split(whole: object, text: str, such_as: str) -> tuple[Fraction, str]:
    """Returns (amount, unit) of `text`, or raises naming `whole` and what would be right."""
    match = _NUMBER_AND_UNIT.fullmatch(text.strip())
    if match is None:
        refuse(whole, f"a number above zero and its unit are needed, such as {such_as}")
    amount, unit = Fraction(match[1]), match[2]
    if amount == 0:
        refuse(whole, "the number must be above zero")
    return amount, unit.lower() if unit in "xX" else unit


def decimal(number: Fraction) -> str:
    """Returns the number without exponent, as short as exact decimals allow; `a/b` has no place in the grammar."""
    if number.denominator == 1:
        return str(number.numerator)
    digits = 0
    while (number * 10**digits).denominator != 1 and digits < 40:
        digits += 1
    whole, rest = divmod(int(number * 10**digits), 10**digits)
    return f"{whole}.{rest:0{digits}d}"


def refuse(value: object, reason: str) -> NoReturn:
    """Raises InvalidInputError for a target."""
    raise InvalidInputError(f"cannot use the target {value!r}: {reason}. Write for example {EXAMPLES}.")


BYTES_PER_UNIT = {
    "B": 1,
    "KB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
    "KiB": 1024,
    "MiB": 1024**2,
    "GiB": 1024**3,
}


class Target:
    """What is asked of a network; each kind is a class of its own, which says in what words it is asked for."""


# From the word before the colon to what reads the rest: (the whole text, the word, the rest) -> target.
WORDS: dict[str, Callable[[str, str, str], Target]] = {}
K = TypeVar("K", bound=Callable[[str, str, str], Target])


def word(*words: str) -> Callable[[K], K]:
    """Makes a function the reader of the targets that begin with these words and a colon."""

    def register(read: K) -> K:
        WORDS.update(dict.fromkeys(words, read))
        return read

    return register


@dataclass(frozen=True, init=False)
class FileSize(Target):
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


@dataclass(frozen=True, init=False)
class BitCount(Target):
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


@dataclass(frozen=True, init=False)
class CodeBits(BitCount):
    """Positions, codes and codebooks of the weights take at most this; biases and norm parameters do not count.

    The count of Kernel Quantization (Yu et al. 2020), under which a layer may have a codebook of whole kernels. Weight
    data leaves out positions and codebooks, which is what such a layer spends its bits on.
    """

    @property
    def word(self) -> str:
        return "codes"


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
        super().__init__(bits=bits, factor=factor)
        object.__setattr__(self, "in_place", in_place)

    @property
    def word(self) -> str:
        return "weights-in-place" if self.in_place else "weights"


@dataclass(frozen=True, init=False)
class Energy(Target):
    """A forward pass takes at most this part of the dense network's energy, under an energy model.

    Attributes:
        fraction: of the dense energy, in (0, 1].
        channels: whole channels are removed, so that the network can be made physically smaller; else single weights.
    """

    fraction: Fraction
    channels: bool

    def __init__(self, fraction: float | Fraction, *, channels: bool = False) -> None:
        """Sets the limit.

        Raises:
            InvalidInputError: the fraction is not a number above 0 and at most 1.
        """
        numeric = isinstance(fraction, numbers.Real) and not isinstance(fraction, bool)
        if not numeric or not 0 < fraction <= 1:  # also refuses nan
            refuse(fraction, "an energy is a fraction of the dense network's, above 0 and at most 1")
        # By way of its shortest decimal form: 0.1 means one tenth, not the double nearest to it.
        object.__setattr__(self, "fraction", Fraction(str(fraction)))
        object.__setattr__(self, "channels", channels)

    def __str__(self) -> str:
        return f"{'energy-channels' if self.channels else 'energy'}:{decimal(100 * self.fraction)}%"


@word("energy", "energy-channels")
def parse_energy(whole: str, word: str, rest: str) -> Energy:
    """Returns the target of `energy:40%` or `energy-channels:40%`."""
    amount, unit = split(whole, rest, "40%")
    if unit != "%" or amount > 100:
        refuse(whole, f"energy is given in percent of the dense network's, at most 100 ({word}:40%)")
    return Energy(amount / 100, channels=word == "energy-channels")


@word("weights", "weights-in-place", "codes")
def parse_bit_count(whole: str, word: str, rest: str) -> WeightBits | CodeBits:
    """Returns the target of `weights:836x`, `weights-in-place:836x`, `codes:250000bits`."""
    amount, unit = split(whole, rest, "836x or 6498bits")
    kind: Callable[..., WeightBits | CodeBits] = CodeBits if word == "codes" else WeightBits
    more = {"in_place": True} if word == "weights-in-place" else {}
    if unit == "x":
        if amount < 1:
            refuse(whole, "a factor is at least 1")
        return kind(factor=amount, **more)
    if unit.lower() in ("bit", "bits") and amount >= 1 and amount.denominator == 1:
        return kind(bits=int(amount), **more)
    name = "code bits are" if word == "codes" else "weight data is"
    word = whole.strip().partition(":")[0]
    refuse(whole, f"{name} given as a factor ({word}:836x) or as a whole number of bits ({word}:6498bits)")
