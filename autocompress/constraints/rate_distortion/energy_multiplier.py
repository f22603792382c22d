"""Two multipliers for two budgets: that of a bit and, around it, that of energy.

With the code tables fixed and the best multiplier of a bit taken at each multiplier of energy, the energy used never
rises with the multiplier of energy (Everett 1963: a Lagrangian optimum is an optimum for what it uses). So that
multiplier, too, follows by bisection; 0 where the energy is no constraint. Exact up to the tolerances of both searches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from autocompress.constraints.rate_distortion.assignment import Layer, energy_at, find_multiplier

MULTIPLIER_TOLERANCE = 5e-3  # relative width of the bracket at which the bisection stops
LIMIT_TOLERANCE = 3e-3  # a search that lands this close under the limit stops early
LOWEST, HIGHEST = 1e-30, 1e30


class _Search:
    """Tries multipliers of energy, each with the multiplier of a bit that goes with it.

    Attributes:
        best: the last pair of multipliers that held the limit.
        close: whether it holds it closely.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        budget_bits: float,
        limit: float,
        multiplier: float,
        bits_at: Callable[[Sequence[Layer], float], float],
    ) -> None:
        self.layers, self.budget_bits, self.limit = layers, budget_bits, limit
        self.multiplier, self.bits_at = multiplier, bits_at
        self.best = (multiplier, HIGHEST)
        self.close = False

    def holds(self, energy_multiplier: float) -> bool:
        """Tells whether the energy is within the limit at a multiplier of it."""
        for layer in self.layers:
            layer.energy_multiplier = energy_multiplier
        self.multiplier = find_multiplier(self.layers, self.budget_bits, self.multiplier, self.bits_at)
        left = self.limit - energy_at(self.layers, self.multiplier)
        if left >= 0:
            self.best, self.close = (self.multiplier, energy_multiplier), left < LIMIT_TOLERANCE * self.limit
        return left >= 0

    def holds_below(self) -> bool:
        """Tells whether the limit holds at a multiplier of energy a little below the best, from the best's multiplier
        of a bit.

        The best is kept where it does not.
        """
        self.multiplier = self.best[0]
        return self.holds(self.best[1] / (1 + MULTIPLIER_TOLERANCE))


def find_multipliers(
    layers: Sequence[Layer],
    budget_bits: float,
    limit: float,
    start: tuple[float, float],
    bits_at: Callable[[Sequence[Layer], float], float],
) -> tuple[float, float]:
    """Returns (multiplier of a bit, multiplier of energy) at which both budgets hold; the layers keep the latter.

    A start that is such a pair is returned as it is.

    Args:
        layers: each with its energy.
        budget_bits: most bits.
        limit: most energy of the nonzeros; one per layer fits.
        start: multipliers near those looked for; a multiplier of energy of 0 is none known.
        bits_at: see `find_multiplier`.
    """
    search = _Search(layers, budget_bits, limit, start[0], bits_at)
    if not search.holds(start[1]) or not (start[1] == 0 or search.close or not search.holds_below()):
        _search(search, start[1])
        while search.best[1] > 0 and not search.close and search.holds_below():
            pass
    for layer in layers:
        layer.energy_multiplier = search.best[1]
    return search.best


def _search(search: _Search, start: float) -> None:
    """Finds the minimum multiplier of energy that holds the limit, within a tolerance, by bisection from a start."""
    if start > 0 and search.holds(0.0):
        return
    low = high = start or _guess(search.layers)
    width = 1.2 if start else 4.0
    if search.holds(high):
        low = high / width
        while not search.close and low > LOWEST and search.holds(low):
            width **= 2
            low, high = low / width, low
    else:
        high = low * width
        while high < HIGHEST and not search.holds(high):
            width **= 2
            low, high = high, high * width
    while not search.close and high / low > 1 + MULTIPLIER_TOLERANCE:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if search.holds(middle) else (middle, high)


def _guess(layers: Sequence[Layer]) -> float:
    """Returns the mean square of a weight over the mean energy of one."""
    squares = sum(layer.weights.square for layer in layers)
    energy = sum(layer.energy.of(layer.weights.matrix.numel()) for layer in layers if layer.energy is not None)
    return max(squares / energy, 1e-30)
