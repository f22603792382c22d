"""From a string to the target it means."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from autocompress.targets.amounts import refuse, split
from autocompress.targets.code_bits import CodeBits
from autocompress.targets.file_size import FileSize
from autocompress.targets.weight_bits import WeightBits

Target = FileSize | WeightBits | CodeBits
# Those that count bits of the weights alone, by their word.
BIT_COUNTS: Mapping[str, Callable[..., WeightBits | CodeBits]] = {
    "weights": WeightBits,
    "weights-in-place": partial(WeightBits, in_place=True),
    "codes": CodeBits,
}
# Promised by the design, said so instead of "unknown" so that nobody hunts for a typing error.
NOT_YET_AVAILABLE = ("energy", "drop", "loss")


def parse_target(target: str | Target) -> Target:
    """Returns the target that a string of the grammar means; a target is returned as it is.

    >>> parse_target("50KB").resolve(original_bytes=1_726_320, compressible_weights=430_500)
    50000
    >>> parse_target("weights:836x").resolve(original_bytes=1_726_320, compressible_weights=430_500)
    16478

    Raises:
        InvalidInputError: the string is not of the grammar; the message names it and shows right ones.
    """
    if isinstance(target, Target):
        return target
    if not isinstance(target, str):
        refuse(target, "a target is a string, FileSize, WeightBits or CodeBits")
    word, colon, rest = target.strip().partition(":")
    if not colon:
        return FileSize(target)
    if word.lower() in NOT_YET_AVAILABLE:
        refuse(target, f"{word.lower()}: targets are not available yet")
    if word.lower() not in BIT_COUNTS:
        refuse(target, f"{word!r} is no kind of target")
    amount, unit = split(target, rest)
    make = BIT_COUNTS[word.lower()]
    if unit == "x":
        if amount < 1:
            refuse(target, "a factor is at least 1")
        return make(factor=amount)
    if unit.lower() in ("bit", "bits") and amount >= 1 and amount.denominator == 1:
        return make(bits=int(amount))
    name = "code bits are" if make is CodeBits else "weight data is"
    refuse(target, f"{name} given as a factor ({word}:836x) or as a whole number of bits ({word}:6498bits)")


def only_target(targets: str | Target | Sequence[str | Target]) -> Target:
    """Returns the one target of a target or a sequence of them.

    Raises:
        InvalidInputError: there is none, there are several (not yet supported together), or it is not of the grammar.
    """
    if not isinstance(targets, Sequence) or isinstance(targets, str):
        return parse_target(targets)
    if not targets:
        refuse(list(targets), "a target is needed")
    parsed = list(dict.fromkeys(parse_target(target) for target in targets))
    if len(parsed) > 1:
        refuse(" and ".join(map(str, parsed)), "several targets together are not supported yet; give one")
    return parsed[0]
