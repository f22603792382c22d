"""What is asked of the compressor, and the grammar in which it is said.

    50KB  50KiB  1.5MB  4000B     the file, everything in it (1 KB = 1000 bytes, 1 KiB = 1024 bytes)
    1%  100x                      the file, as a part of the original float32 tensors
    weights:836x  weights:6498bits    weight data, the literature's count: bits times nonzeros, nothing else
    weights-in-place:836x             the same by the published algorithm, to compare with
    codes:20x  codes:250000bits       positions, codes and codebooks of the weights, codebooks of kernels among them
    drop:0.5                          validation accuracy at most 0.5 points below that of the network given
    loss:+2%                          validation loss at most 2 % above that of the network given
    energy:40%                        the energy of a forward pass, as a part of the dense network's: weights are zeroed
    energy-channels:40%               the same by removing whole channels

Alone, a quality constraint (drop:, loss:) asks for the smallest file that satisfies it. Several targets, joined by
"and" or given one by one, must all be satisfied: `50KB and drop:0.5`, `50KB and energy:40%`.

The same strings serve in Python and on the command line; upper and lower case mean the same.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from autocompress.targets.kinds import (
    BYTES_PER_UNIT,
    WORDS,
    CodeBits,
    Energy,
    FileSize,
    Target,
    WeightBits,
    refuse,
)
from autocompress.targets.quality import AccuracyDrop, LossIncrease, QualityTarget

__all__ = [
    "BYTES_PER_UNIT",
    "AccuracyDrop",
    "CodeBits",
    "Energy",
    "FileSize",
    "LossIncrease",
    "QualityTarget",
    "Target",
    "Targets",
    "WeightBits",
    "combined",
    "parse_target",
]


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
    if word.lower() in WORDS:
        return WORDS[word.lower()](target, word.lower(), rest)
    refuse(target, f"{word!r} is no kind of target")


_JOINT = re.compile(r"\s+and\s+", re.IGNORECASE)
# Kinds that may be given with one another; any kind may be given alone, and several times: the tightest rules.
SUPPORTED = ({FileSize, AccuracyDrop}, {FileSize, LossIncrease}, {FileSize, Energy})
T = TypeVar("T", bound=Target)


@dataclass(frozen=True)
class Targets:
    """What is asked of one network: all of it holds, the tightest rules.

    Attributes:
        each: the targets in the order they were given, at least one, no two alike.
    """

    each: tuple[Target, ...]

    def __str__(self) -> str:
        """Returns them in the grammar; `combined` of it is equal to this."""
        return " and ".join(map(str, self.each))

    @property
    def only(self) -> Target:
        """The target, for who can meet one alone.

        Raises:
            InvalidInputError: there are several.
        """
        if len(self.each) > 1:
            refuse(str(self), "one target alone can be met here")
        return self.each[0]

    def of_kind(self, kind: type[T]) -> list[T]:
        return [target for target in self.each if isinstance(target, kind)]

    @property
    def quality(self) -> QualityTarget | None:
        promises: list[QualityTarget] = [*self.of_kind(AccuracyDrop), *self.of_kind(LossIncrease)]
        return min(promises, key=lambda promise: promise.strictness, default=None)


def combined(targets: str | Target | Targets | Sequence[str | Target]) -> Targets:
    """Returns what has to hold together: of one target, of several, or of a string that joins them by "and".

    >>> str(combined(["50KB", "drop:0.5"]))
    '50KB and drop:0.5'
    >>> combined("50KB and drop:0.5").quality
    AccuracyDrop(points=Fraction(1, 2))

    Raises:
        InvalidInputError: there is none, one is not of the grammar, or they are not supported together.
    """
    if isinstance(targets, Targets):
        return targets
    several = list(targets) if isinstance(targets, Sequence) and not isinstance(targets, str) else [targets]
    if not several:
        refuse(several, "a target is needed")
    words = [word for target in several for word in (_JOINT.split(target) if isinstance(target, str) else [target])]
    found = Targets(tuple(dict.fromkeys(parse_target(word) for word in words)))
    kinds = {type(target) for target in found.each}
    if len(kinds) > 1 and kinds not in SUPPORTED:
        refuse(
            str(found),
            "these are not supported together; a file size may be given with energy: or one of drop: and loss:",
        )
    channels = {energy.channels for energy in found.of_kind(Energy)}
    if len(kinds) > 1 and True in channels:
        refuse(str(found), "energy-channels: is not supported together with others; energy: is, with a file size")
    if len(channels) > 1:
        refuse(str(found), "energy: and energy-channels: are two methods; give one")
    if len({getattr(target, "in_place", None) for target in found.each}) > 1:
        refuse(str(found), "weights: and weights-in-place: are two methods; give one")
    return found
