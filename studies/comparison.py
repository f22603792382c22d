"""The methods of one table compared by their test accuracy: each with the compressor, and the best with all others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from studies.blocks import Block
from studies.record import COMPRESSOR, unpack
from studies.significance import Bootstrap, Difference, holm


@dataclass(frozen=True)
class Comparison:
    """What the test says of a block.

    Attributes:
        to_compressor: of each other method that shares a seed with the compressor, corrected over these methods.
        best: the method that is better than each other, corrected over all pairs; None where the test allows none.
    """

    to_compressor: dict[str, Difference]
    best: str | None


def compare(block: Block) -> Comparison:
    """Returns the comparison of the methods of a block that have a finished cell."""
    correct = {
        cells.method: {seed: unpack(record.correct, record.examples) for seed, record in cells.records.items()}
        for cells in block.methods
        if cells.records
    }
    if len(correct) < 2:
        return Comparison({}, None)
    bootstrap = Bootstrap(correct)
    pairs = {(a, b): bootstrap.difference(a, b) for a, b in combinations(correct, 2)}
    others = [method for method in correct if method != COMPRESSOR]
    to_compressor: dict[str, Difference] = {}
    if COMPRESSOR in correct:
        found = {method: bootstrap.difference(method, COMPRESSOR) for method in others}
        known = {method: difference for method, difference in found.items() if difference is not None}
        to_compressor = dict(zip(known, adjust(list(known.values())), strict=True))
    means = {method: float(np.mean([right.mean() for right in seeds.values()])) for method, seeds in correct.items()}
    return Comparison(to_compressor, _best(pairs, means))


def adjust(differences: Sequence[Difference]) -> list[Difference]:
    """Returns the differences with the p-values of a family of so many."""
    corrected = holm([difference.p for difference in differences])
    return [replace(each, adjusted_p=p) for each, p in zip(differences, corrected, strict=True)]


def _best(pairs: dict[tuple[str, str], Difference | None], means: dict[str, float]) -> str | None:
    """Returns the method of highest mean accuracy if it is better than every other one."""
    known = {pair: difference for pair, difference in pairs.items() if difference is not None}
    adjusted = dict(zip(known, adjust(list(known.values())), strict=True))
    top = max(means, key=lambda method: means[method])
    wins = sum(
        difference.verdict == ("better" if first == top else "worse")
        for (first, second), difference in adjusted.items()
        if top in (first, second)
    )
    return top if wins == len(means) - 1 else None
