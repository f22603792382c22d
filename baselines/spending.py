"""What a search may spend: a trial begins only where it, and all that run, could go to their end.

So the steps of a search are never more than announced, whatever a pruner or a scheduler lets live, and no trial is cut
off half-way for the sake of the sum. Seconds cannot be known beforehand: a trial counts as long as the longest so far,
and what runs when the seconds are over is stopped after its epoch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from baselines.interface import Objective, SearchSettings

SLOWER = 1.1  # than the longest trial so far: what the next one may take


@dataclass
class Spending:
    """The limits of a search, and what its trials cost.

    Attributes:
        max_steps, max_seconds: None = no limit.
        trial_steps: of a whole trial; 0 = not known before one has come to its end.
        costs: by the number of a trial: (steps, seconds) so far.
        running: numbers of those under way.
        trial_seconds: of a whole trial, as far as is known.
        steps, seconds: of all trials together.
    """

    max_steps: int | None
    max_seconds: float | None
    trial_steps: int
    costs: dict[int, tuple[int, float]] = field(default_factory=dict)
    running: set[int] = field(default_factory=set)
    trial_seconds: float = 0.0
    steps: int = 0
    seconds: float = 0.0

    @classmethod
    def of(cls, settings: SearchSettings, objective: Objective) -> Spending:
        steps = int(getattr(objective, "steps_per_epoch", 0)) * objective.epochs
        return cls(settings.max_gradient_steps, settings.max_seconds, steps)

    def note(self, number: int, steps: int, seconds: float, *, running: bool, whole: bool = False) -> None:
        """Takes in what a trial has cost so far, in all its attempts."""
        before = self.costs.get(number, (0, 0.0))
        self.costs[number] = steps, seconds
        self.steps, self.seconds = self.steps + steps - before[0], self.seconds + seconds - before[1]
        if running:
            self.running.add(number)
        else:
            self.running.discard(number)
        if whole:
            self.trial_steps = max(self.trial_steps, steps)
            self.trial_seconds = max(self.trial_seconds, SLOWER * seconds)

    @property
    def seconds_are_over(self) -> bool:
        return self.max_seconds is not None and self.seconds >= self.max_seconds

    def allows(self, number: int) -> bool:
        """Tells whether a trial may begin, or begin again."""
        if self.max_steps is None and self.max_seconds is None:
            return True
        steps, seconds = self.steps + self.trial_steps, self.seconds + self.trial_seconds
        for other in self.running - {number}:
            spent = self.costs.get(other, (0, 0.0))
            steps += max(self.trial_steps - spent[0], 0)
            seconds += max(self.trial_seconds - spent[1], 0.0)
        return (self.max_steps is None or steps <= self.max_steps) and (
            self.max_seconds is None or seconds <= self.max_seconds
        )

    def side_by_side(self, numbers: Iterable[int]) -> list[int]:
        """Returns those of some trials, from the first on, that may all be under way together."""
        found: list[int] = []
        for number in numbers:
            if not self.allows(number):
                break
            self.running.add(number)
            found.append(number)
        self.forget(found)
        return found

    def forget(self, numbers: Iterable[int]) -> None:
        """Takes trials out of those under way: nobody works on them."""
        self.running -= set(numbers)
