"""Train, validation and test: fixed once and for all, whatever the seed of a run."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SPLIT_SEED = 20200616  # any number, never to be changed: results on other splits could not be compared
VALIDATION_FRACTION = 0.1


def hold_out(count: int, fraction: float = VALIDATION_FRACTION) -> tuple[Tensor, Tensor]:
    """Returns the indices (kept, held out) of `count` examples, each int64 and ascending; at least one is held out."""
    # numpy promises that the stream of RandomState never changes, across versions and machines
    order = np.random.RandomState(SPLIT_SEED).permutation(count)
    held = max(1, round(fraction * count))
    return _sorted(order[held:]), _sorted(order[:held])


def stratified(labels: Tensor, fractions: tuple[float, ...]) -> list[Tensor]:
    """Returns one ascending int64 index per fraction, disjoint, together all; each class in these proportions.

    Args:
        labels: classes [n].
        fractions: of each part, summing to 1; rounding goes to the first part.
    """
    random = np.random.RandomState(SPLIT_SEED)
    parts: list[list[NDArray[np.int64]]] = [[] for _ in fractions]
    for label in np.unique(labels.numpy()):
        members = random.permutation(np.flatnonzero(labels.numpy() == label))
        start = len(members)
        for part, fraction in reversed(list(zip(parts[1:], fractions[1:], strict=True))):
            size = round(fraction * len(members))
            part.append(members[max(0, start - size) : start])
            start = max(0, start - size)
        parts[0].append(members[:start])
    return [_sorted(np.concatenate(part)) for part in parts]


def _sorted(index: NDArray[np.int64]) -> Tensor:
    return torch.from_numpy(np.sort(index).astype(np.int64))
