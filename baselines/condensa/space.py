"""The space that is searched: one density."""

from __future__ import annotations

from dataclasses import dataclass

from baselines.condensa.goal import Goal
from baselines.interface import Parameter, Values

SPACE = "condensa"
DENSITY = "density"
# Three decades: at the lowest, LeNet-5 keeps 430 weights. The first sample is their middle.
MIN_DENSITY, START_DENSITY = 0.001, 0.03


@dataclass(frozen=True)
class CondensaSpace:
    """One density for the whole network.

    Attributes:
        goal: what the search is to keep.
    """

    goal: Goal
    name: str = SPACE
    parameters: tuple[Parameter, ...] = (Parameter(DENSITY, MIN_DENSITY, 1.0, log=True),)

    @property
    def start(self) -> Values:
        return {DENSITY: START_DENSITY}
