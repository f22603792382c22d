"""How long and how hard the L-C solver works: the published schedules, and the same within fewer steps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate

from autocompress.errors import InvalidInputError

MIN_STEPS_PER_L = 8  # an L step of less does not move the network; shorter runs get fewer L steps


@dataclass(frozen=True)
class Schedule:
    """A run of the solver: one direct compression, then L steps, each followed by a C step.

    Attributes:
        l_steps: how many.
        first_steps: gradient steps of the first, in which the network leaves where it was trained to.
        steps_per_l: gradient steps of each other one.
        mu, mu_factor: first penalty, and its growth from one L step to the next.
        learning_rate: at the beginning of an L step.
        last_learning_rate: to which it falls geometrically within each L step; None = it stays.
        learning_rate_factor: on the rate from one L step to the next.
        momentum: of Nesterov's kind, from rest in each L step.
    """

    l_steps: int
    first_steps: int
    steps_per_l: int
    mu: float
    mu_factor: float
    learning_rate: float
    last_learning_rate: float | None = None
    learning_rate_factor: float = 1.0
    momentum: float = 0.95

    @property
    def lengths(self) -> list[int]:
        return [self.first_steps] + [self.steps_per_l] * (self.l_steps - 1)

    def rates(self, l_step: int, steps: int) -> list[float]:
        """Returns the learning rate of each of the steps of an L step, which count from 0."""
        peak = self.learning_rate * self.learning_rate_factor**l_step
        end = self.last_learning_rate
        if end is None or steps < 2:
            return [peak] * steps
        return [peak * (end / peak) ** (step / (steps - 1)) for step in range(steps)]

    def within(self, total_steps: int) -> tuple[Schedule, list[int]]:
        """Returns (this schedule in so many gradient steps, the steps of each L step, which sum to them).

        Where an L step gets fewer gradient steps, mu grows in proportion, so that the part of the distance to theta
        that an L step takes back is the published one; with fewer L steps it grows faster, to the same end.

        Raises:
            InvalidInputError: there are no steps.
        """
        if total_steps < 1:
            raise InvalidInputError(f"the solver was given {total_steps} gradient steps; it needs at least 1")
        if total_steps == sum(self.lengths):
            return self, self.lengths
        long = self.first_steps / self.steps_per_l
        l_steps = max(1, min(self.l_steps, int(total_steps / MIN_STEPS_PER_L - long + 1)))
        parts = [long] + [1.0] * (l_steps - 1)
        ends = [round(total_steps * part / sum(parts)) for part in accumulate(parts)]
        lengths = [end - start for start, end in zip([0, *ends], ends, strict=False)]
        growth = self.mu_factor ** ((self.l_steps - 1) / max(1, l_steps - 1))
        mu = self.mu * self.steps_per_l * sum(parts) / total_steps
        decay = self.learning_rate_factor ** (self.l_steps / l_steps)
        return replace(self, l_steps=l_steps, mu=mu, mu_factor=growth, learning_rate_factor=decay), lengths


# AlexNet on CIFAR-10: 35 iterations, the first of which only compresses, minibatches of 128.
ALEXNET_CIFAR10_SCHEDULE = Schedule(
    l_steps=34,
    first_steps=30_000,
    steps_per_l=3_000,
    mu=1e-3,
    mu_factor=1.1,
    learning_rate=1e-2,
    last_learning_rate=1e-4,
    momentum=0.95,
)
# LeNet-5 on MNIST; the number of iterations is the published code's default, 30, and the momentum AlexNet's.
LENET5_MNIST_SCHEDULE = Schedule(
    l_steps=29,
    first_steps=10_000,
    steps_per_l=2_000,
    mu=9.77e-5,
    mu_factor=1.1,
    learning_rate=0.02,
    learning_rate_factor=0.98,
    momentum=0.95,
)
