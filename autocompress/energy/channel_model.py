"""Energy as a function of how many channels each group keeps: a bilinear model, fitted to measurements.

    psi(r) = a_0 + sum_g a_g r_g + sum_(g,h) a_gh r_g r_h,      r_g = kept channels of group g / all of them

with a product for each layer that takes channels of g and gives channels of h (Yang, Zhu and Liu 2019, CVPR; the
linear terms are what reading inputs and writing outputs costs). The coefficients follow in closed form by ridge
regression of the relative error.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt

from autocompress.codec.atomic_write import write_whole
from autocompress.errors import InvalidInputError

Floats = npt.NDArray[np.float64]
RIDGE = 5e-4  # the paper's, for energies relative to the dense network's
HELD_OUT = 0.2


@dataclass(frozen=True)
class ChannelEnergy:
    """A fitted model.

    Attributes:
        groups: name of each group of channels.
        channels: how many each has.
        pairs: groups whose product is a term; those of a layer.
        coefficients: a_0, one per group, one per pair, in `unit`.
        unit: of energy.
        held_out_error: mean relative error on measurements that the fit has not seen.
    """

    groups: tuple[str, ...]
    channels: tuple[int, ...]
    pairs: tuple[tuple[int, int], ...]
    coefficients: tuple[float, ...]
    unit: str
    held_out_error: float

    def of(self, widths: npt.ArrayLike) -> Floats:
        """Returns the energy [...] of kept channels [..., groups]."""
        fractions = np.asarray(widths, dtype=np.float64) / np.asarray(self.channels, dtype=np.float64)
        energy: Floats = _features(fractions, self.pairs) @ np.asarray(self.coefficients)
        return energy

    @property
    def dense(self) -> float:
        return float(self.of(self.channels))

    def save(self, path: Path) -> None:
        write_whole(path, json.dumps(vars(self)).encode())

    @classmethod
    def load(cls, path: Path) -> ChannelEnergy:
        """Returns the model that `save` wrote.

        Raises:
            InvalidInputError: the file cannot be read, or is not one.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise InvalidInputError(f"the energy model {str(path)!r} cannot be read: {error}") from error
        try:
            found = json.loads(text)
            model = cls(
                tuple(map(str, found["groups"])),
                tuple(map(int, found["channels"])),
                tuple((int(a), int(b)) for a, b in found["pairs"]),
                tuple(map(float, found["coefficients"])),
                str(found["unit"]),
                float(found["held_out_error"]),
            )
            smallest, dense = float(model.of([1] * len(model.channels))), model.dense
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise InvalidInputError(
                f"{str(path)!r} is no energy model: it must be a file that `autocompress energy fit --out` wrote, with "
                f"{', '.join(each.name for each in fields(cls))}"
            ) from error
        if not 0 < smallest <= dense < math.inf:  # also refuses nan
            raise InvalidInputError(
                f"the energy model {str(path)!r} cannot be used: it gives the dense network {dense:g} {model.unit} and "
                f"one with a single channel per group {smallest:g}; both must be above zero, and the first be larger"
            )
        return model


def _features(fractions: Floats, pairs: Sequence[tuple[int, int]]) -> Floats:
    """Returns [..., 1 + groups + pairs]."""
    products = [fractions[..., a, None] * fractions[..., b, None] for a, b in pairs]
    return np.concatenate([np.ones((*fractions.shape[:-1], 1)), fractions, *products], axis=-1)


def random_widths(channels: Sequence[int], count: int, seed: int) -> npt.NDArray[np.int64]:
    """Returns [count, groups] numbers of kept channels, at least one each: all of them first, then at random."""
    rng = np.random.default_rng(seed)
    fractions = rng.uniform(0.0, 1.0, (count, len(channels)))
    drawn: npt.NDArray[np.int64] = np.maximum(np.ceil(fractions * np.asarray(channels)).astype(np.int64), 1)
    drawn[0] = channels
    return drawn


def fit_channel_energy(
    groups: Sequence[str],
    channels: Sequence[int],
    pairs: Sequence[tuple[int, int]],
    widths: npt.NDArray[np.int64],
    energies: Floats,
    unit: str,
) -> ChannelEnergy:
    """Returns the model fitted to the first part of some measurements, its error measured on the rest.

    Args:
        groups, channels, pairs, unit: see `ChannelEnergy`.
        widths: [n, groups] kept channels.
        energies: [n], all above zero.
    """
    scale = float(energies.max())
    split = len(energies) - max(1, round(HELD_OUT * len(energies)))
    x, y = _features(widths / np.asarray(channels, dtype=np.float64), pairs), energies / scale
    weighted = x[:split] / y[:split, None]  # each measurement's relative error counts the same
    gram = weighted.T @ weighted + RIDGE * np.eye(x.shape[1])
    coefficients = np.linalg.solve(gram, weighted.sum(axis=0))
    error = float(np.mean(np.abs(x[split:] @ coefficients / y[split:] - 1)))
    scaled = tuple(float(c) for c in coefficients * scale)
    return ChannelEnergy(tuple(groups), tuple(channels), tuple(pairs), scaled, unit, error)
