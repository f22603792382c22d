"""Numbers with units, and the error that every target raises."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NoReturn

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
