"""Two prices for two budgets: that of a bit and, around it, that of energy.

With the code tables fixed and the best price of a bit taken at each price of energy, the energy used never rises with
the price of energy (Everett 1963: a Lagrangian optimum is an optimum for what it uses). So that price, too, follows by
bisection; 0 where the energy is no constraint. Exact up to the tolerances of both searches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from autocompress.constraints.rate_distortion.assignment import Layer, energy_at, find_price

PRICE_TOLERANCE = 5e-3  # relative width of the bracket at which the bisection stops
LIMIT_TOLERANCE = 3e-3  # a search that lands this close under the limit stops early
LOWEST, HIGHEST = 1e-30, 1e30


class _Search:
    """Tries prices of energy, each with the price of a bit that goes with it.

    Attributes:
        best: the last pair of prices that held the limit.
        close: whether it holds it closely.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        budget_bits: float,
        limit: float,
        price: float,
        bits_at: Callable[[Sequence[Layer], float], float],
    ) -> None:
        self.layers, self.budget_bits, self.limit = layers, budget_bits, limit
        self.price, self.bits_at = price, bits_at
        self.best = (price, HIGHEST)
        self.close = False

    def holds(self, energy_price: float) -> bool:
        """Tells whether the energy is within the limit at a price of it."""
        for layer in self.layers:
            layer.energy_price = energy_price
        self.price = find_price(self.layers, self.budget_bits, self.price, self.bits_at)
        left = self.limit - energy_at(self.layers, self.price)
        if left >= 0:
            self.best, self.close = (self.price, energy_price), left < LIMIT_TOLERANCE * self.limit
        return left >= 0

    def holds_below(self) -> bool:
        """Tells whether the limit holds at a price of energy a little below the best, from the best's price of a bit.

        The best is kept where it does not.
        """
        self.price = self.best[0]
        return self.holds(self.best[1] / (1 + PRICE_TOLERANCE))


def find_prices(
    layers: Sequence[Layer],
    budget_bits: float,
    limit: float,
    start: tuple[float, float],
    bits_at: Callable[[Sequence[Layer], float], float],
) -> tuple[float, float]:
    """Returns (price of a bit, price of energy) at which both budgets hold; the layers keep the latter.

    A start that is such a pair is returned as it is.

    Args:
        layers: each with its energy.
        budget_bits: most bits.
        limit: most energy of the nonzeros; one per layer fits.
        start: prices near those looked for; a price of energy of 0 is none known.
        bits_at: see `find_price`.
    """
    search = _Search(layers, budget_bits, limit, start[0], bits_at)
    if not search.holds(start[1]) or not (start[1] == 0 or search.close or not search.holds_below()):
        _search(search, start[1])
        while search.best[1] > 0 and not search.close and search.holds_below():
            pass
    for layer in layers:
        layer.energy_price = search.best[1]
    return search.best


def _search(search: _Search, start: float) -> None:
    """Finds the least price of energy that holds the limit, within a tolerance, by bisection from near a price."""
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
    while not search.close and high / low > 1 + PRICE_TOLERANCE:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if search.holds(middle) else (middle, high)


def _guess(layers: Sequence[Layer]) -> float:
    """Returns the mean square of a weight over the mean energy of one."""
    squares = sum(layer.weights.square for layer in layers)
    energy = sum(layer.energy.of(layer.weights.matrix.numel()) for layer in layers if layer.energy is not None)
    return max(squares / energy, 1e-30)
