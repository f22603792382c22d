"""From a string to the target it means."""

from __future__ import annotations

import re
from collections.abc import Sequence

from autocompress.targets.amounts import refuse, split
from autocompress.targets.energy import Energy, FileSizeAndEnergy, file_and_energy, parse_energy
from autocompress.targets.file_size import FileSize
from autocompress.targets.weight_bits import WeightBits

Target = FileSize | WeightBits | Energy | FileSizeAndEnergy
# Promised by the design, said so instead of "unknown" so that nobody hunts for a typing error.
NOT_YET_AVAILABLE = ("drop", "loss")


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
        refuse(target, "a target is a string, FileSize, WeightBits or Energy")
    parts = re.split(r"\s+and\s+", target.strip(), flags=re.IGNORECASE)
    if len(parts) > 1:
        return only_target(parts)
    word, colon, rest = target.strip().partition(":")
    if not colon:
        return FileSize(target)
    if word.lower() in NOT_YET_AVAILABLE:
        refuse(target, f"{word.lower()}: targets are not available yet")
    if word.lower() in ("energy", "energy-channels"):
        return parse_energy(target, word.lower(), *split(target, rest))
    if word.lower() not in ("weights", "weights-in-place"):
        refuse(target, f"{word!r} is no kind of target")
    amount, unit = split(target, rest)
    in_place = word.lower() == "weights-in-place"
    if unit == "x":
        if amount < 1:
            refuse(target, "a factor is at least 1")
        return WeightBits(factor=amount, in_place=in_place)
    if unit.lower() in ("bit", "bits") and amount >= 1 and amount.denominator == 1:
        return WeightBits(bits=int(amount), in_place=in_place)
    refuse(target, "weight data is given as a factor (weights:836x) or as a whole number of bits (weights:6498bits)")


def only_target(targets: str | Target | Sequence[str | Target]) -> Target:
    """Returns the one target of a target or a sequence of them; a file size and an energy make one.

    Raises:
        InvalidInputError: there is none, there are several that do not go together, or it is not of the grammar.
    """
    if not isinstance(targets, Sequence) or isinstance(targets, str):
        return parse_target(targets)
    if not targets:
        refuse(list(targets), "a target is needed")
    parsed = list(dict.fromkeys(parse_target(target) for target in targets))
    if len(parsed) == 1:
        return parsed[0]
    together = file_and_energy(list(parsed))
    if together is None:
        refuse(" and ".join(map(str, parsed)), "of several targets only a file size and an energy go together")
    return together
