"""A target: the energy of a forward pass."""

from __future__ import annotations

import numbers
from dataclasses import dataclass
from fractions import Fraction

from autocompress.targets.amounts import decimal, refuse


@dataclass(frozen=True, init=False)
class Energy:
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
        """Returns the target in the grammar; `parse_target` of it is equal to this one."""
        return f"{'energy-channels' if self.channels else 'energy'}:{decimal(100 * self.fraction)}%"


def parse_energy(whole: object, word: str, amount: Fraction, unit: str) -> Energy:
    """Returns the target of `energy:40%` or `energy-channels:40%`, its number and unit already read."""
    if unit != "%" or amount > 100:
        refuse(whole, f"energy is given in percent of the dense network's, at most 100 ({word}:40%)")
    return Energy(amount / 100, channels=word == "energy-channels")
