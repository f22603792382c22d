"""From a string to the target it means."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import partial

from autocompress.targets.amounts import refuse, split
from autocompress.targets.code_bits import CodeBits
from autocompress.targets.energy import Energy, parse_energy
from autocompress.targets.kinds import FileSize
from autocompress.targets.promises import AccuracyDrop, LossIncrease
from autocompress.targets.weight_bits import WeightBits

Target = FileSize | WeightBits | CodeBits | Energy | AccuracyDrop | LossIncrease
# Those that count bits of the weights alone, by their word.
BIT_COUNTS: Mapping[str, Callable[..., WeightBits | CodeBits]] = {
    "weights": WeightBits,
    "weights-in-place": partial(WeightBits, in_place=True),
    "codes": CodeBits,
}
_NUMBER = re.compile(r"\d{1,18}(?:\.\d{0,40})?|\.\d{1,40}", re.ASCII)


def parse_target(target: str | Target) -> Target:
    """Returns the target that a string of the grammar means; a target is returned as it is.

    >>> parse_target("50KB").resolve(original_bytes=1_726_320, compressible_weights=430_500)
    50000
    >>> parse_target("weights:836x").resolve(original_bytes=1_726_320, compressible_weights=430_500)
    16478
    >>> parse_target("drop:0.5").limit(reference=0.985)
    0.98

    Raises:
        InvalidInputError: the string is not of the grammar; the message names it and shows right ones.
    """
    if isinstance(target, Target):
        return target
    if not isinstance(target, str):
        refuse(target, "a target is a string, FileSize, WeightBits, CodeBits, Energy, AccuracyDrop or LossIncrease")
    word, colon, rest = target.strip().partition(":")
    if not colon:
        return FileSize(target)
    match word.lower():
        case "drop":
            return _accuracy_drop(target, rest)
        case "loss":
            return _loss_increase(target, rest)
        case "energy" | "energy-channels":
            return parse_energy(target, word.lower(), *split(target, rest, "40%"))
        case kind if kind in BIT_COUNTS:
            return _bit_count(target, word, rest)
    refuse(target, f"{word!r} is no kind of target")


def _bit_count(target: str, word: str, rest: str) -> WeightBits | CodeBits:
    amount, unit = split(target, rest, "836x or 6498bits")
    make = BIT_COUNTS[word.lower()]
    if unit == "x":
        if amount < 1:
            refuse(target, "a factor is at least 1")
        return make(factor=amount)
    if unit.lower() in ("bit", "bits") and amount >= 1 and amount.denominator == 1:
        return make(bits=int(amount))
    name = "code bits are" if make is CodeBits else "weight data is"
    refuse(target, f"{name} given as a factor ({word}:836x) or as a whole number of bits ({word}:6498bits)")


def _accuracy_drop(target: str, rest: str) -> AccuracyDrop:
    if _NUMBER.fullmatch(rest.strip()) is None or Fraction(rest.strip()) >= 100:
        refuse(target, "a fall of accuracy is given in points, at least 0 and below 100, without a unit (drop:0.5)")
    return AccuracyDrop(Fraction(rest.strip()))


def _loss_increase(target: str, rest: str) -> LossIncrease:
    number, percent, more = rest.strip().removeprefix("+").partition("%")
    if not percent or more or _NUMBER.fullmatch(number.strip()) is None:
        refuse(target, "an increase of the loss is given in percent, at least 0 (loss:+2%)")
    return LossIncrease(Fraction(number.strip()))
