"""The file size that a quality constraint allows: a controller while the network learns, a search at the end.

Both work on the logarithm of the size and see one number, the margin: how much of the allowed loss of quality is left,
1 where the network is as good as the reference, 0 where the constraint is just satisfied, below 0 where violated.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from typing import Any

# The budget's largest move between two updates, natural logarithm. A faster one degrades V for an update,
# whatever the budget, and what it scores then says nothing about the size.
MAX_MOVE = 0.2
# The median of so many margins counts: a single bad one says more about that moment than about the budget.
MEDIAN_OF = 3
# The moves fall as 1 / (1 + update / this): large steps to get near, small ones against noise (Robbins and Monro 1951).
SETTLING_UPDATES = 30
# From this margin on, either way, the move is the largest.
MAX_MARGIN = 1.0
# While all tries of the search kept the promise (or none did), the next is smaller (larger) by this factor; the factor
# is squared from try to try.
SEARCH_STEP = 0.85


class BudgetController:
    """Moves a budget until the margin is zero: the multiplicative update of Rezende and Viola (2018), damped.

        m_t         = median of the last margins, each within [-MAX_MARGIN, MAX_MARGIN]
        log budget -= MAX_MOVE * m_t / MAX_MARGIN / (1 + t / SETTLING_UPDATES)

    Undamped it oscillates, because the network answers late and each answer is noisy. Bounds stop the sum itself, so
    nothing winds up at them.

    Attributes:
        budget_bytes: the budget of this moment.
        last: the last margins, at most `MEDIAN_OF`.
        updates: margins seen.
    """

    def __init__(self, start_bytes: float, lowest_bytes: float, highest_bytes: float) -> None:
        """Starts at a budget, kept within the bounds."""
        self.lowest_bytes, self.highest_bytes = lowest_bytes, highest_bytes
        self.budget_bytes = self._bounded(start_bytes)
        self.last: list[float] = []
        self.updates = 0

    def observe(self, margin: float) -> float:
        """Returns the next budget, after a margin was measured at this one; NaN counts as a broken promise."""
        margin = -MAX_MARGIN if math.isnan(margin) else max(-MAX_MARGIN, min(margin, MAX_MARGIN))
        self.last = [*self.last, margin][-MEDIAN_OF:]
        move = MAX_MOVE * statistics.median(self.last) / MAX_MARGIN
        self.budget_bytes = self._bounded(self.budget_bytes * math.exp(-move / (1 + self.updates / SETTLING_UPDATES)))
        self.updates += 1
        return self.budget_bytes

    def _bounded(self, budget_bytes: float) -> float:
        return min(max(budget_bytes, self.lowest_bytes), self.highest_bytes)

    def state_dict(self) -> dict[str, Any]:
        return {"budget_bytes": self.budget_bytes, "last": self.last, "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.budget_bytes, self.last, self.updates = state["budget_bytes"], list(state["last"]), state["updates"]


@dataclass
class SizeSearch:
    """Few tries for the smallest size that satisfies a constraint: wider and wider steps, then bisection.

    All of it on the logarithm of the size.

    Attributes:
        start_bytes: the first try.
        lowest_bytes, highest_bytes: bounds of all tries.
        known_bytes: a size that is known to satisfy it, infinite where there is none.
        satisfied: sizes tried at which it was.
        violated: sizes tried at which it was not.
    """

    start_bytes: float
    lowest_bytes: float
    highest_bytes: float
    known_bytes: float = math.inf
    satisfied: list[float] = field(default_factory=list)
    violated: list[float] = field(default_factory=list)

    @property
    def next_bytes(self) -> float:
        """The next size to try."""
        smallest = min(self.satisfied, default=self.known_bytes)
        # Measurements are noisy: a size that failed although a smaller one held says nothing.
        violated = [size for size in self.violated if size < smallest]
        if math.isfinite(smallest) and violated:
            size = math.sqrt(smallest * max(violated))
        elif self.satisfied:
            size = smallest * SEARCH_STEP**2 ** (len(self.satisfied) - 1)
        elif violated:
            size = max(violated) / SEARCH_STEP**2 ** (len(violated) - 1)
        else:
            size = self.start_bytes
        return min(max(size, self.lowest_bytes), self.highest_bytes)

    def report(self, size_bytes: float, *, keeps: bool) -> None:
        """Takes note of the outcome of a try."""
        (self.satisfied if keeps else self.violated).append(size_bytes)
