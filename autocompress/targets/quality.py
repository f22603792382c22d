"""Quality constraints: how far the network may fall behind the one that was given, in the smallest file that does."""

from __future__ import annotations

import math
import numbers
import re
from dataclasses import dataclass
from fractions import Fraction

from autocompress.errors import InvalidInputError
from autocompress.targets.kinds import Target, decimal, refuse, word

# Where no fall at all is allowed there still has to be a scale for a measured one: points, percent.
MIN_POINTS = Fraction(1, 2)
MIN_PERCENT = Fraction(1)
# A constraint is violated by more than this, against rounding in the last place of a mean of scores.
ROUNDING = 1e-9
_NUMBER = re.compile(r"\d{1,18}(?:\.\d{0,40})?|\.\d{1,40}", re.ASCII)


@dataclass(frozen=True, init=False)
class AccuracyDrop(Target):
    """The validation accuracy falls by at most so many points below the reference's.

    Attributes:
        points: the largest fall, in points (hundredths) of accuracy, in [0, 100).
    """

    points: Fraction

    def __init__(self, points: float | Fraction) -> None:
        """Sets the largest fall; 0 asks for a network that is as accurate.

        Raises:
            InvalidInputError: not a number in [0, 100).
        """
        if isinstance(points, bool) or not isinstance(points, numbers.Real) or not 0 <= points < 100:
            refuse(points, "a fall of accuracy is a number of points, at least 0 and below 100")
        # By way of its shortest decimal form: 0.1 means one tenth, not the double nearest to it.
        object.__setattr__(self, "points", Fraction(str(points)))

    def __str__(self) -> str:
        return f"drop:{decimal(self.points)}"

    @property
    def strictness(self) -> Fraction:
        """The smaller, the stricter, among constraints of this kind."""
        return self.points

    def limit(self, reference: float) -> float:
        """Returns the lowest accuracy that satisfies the constraint, a fraction of 1."""
        return reference - float(self.points) / 100

    def margin(self, score: float, reference: float) -> float:
        """Returns the slack, as a fraction of what is allowed; below 0: violated.

        Args:
            score: accuracy of the compressed network, a fraction of 1.
            reference: the same of the network that was given.
        """
        return (score + ROUNDING - self.limit(reference)) / (float(max(self.points, MIN_POINTS)) / 100)

    @staticmethod
    def check_reference(reference: float) -> None:
        """Raises InvalidInputError for what is not an accuracy, a fraction of 1."""
        if not math.isfinite(reference):
            raise InvalidInputError(f"the network's own accuracy is {reference}; it has to be finite")
        if not 0 <= reference <= 1:
            percent = "in percent? Give it divided by 100" if 1 < reference <= 100 else "a loss? loss:+2% is for that"
            raise InvalidInputError(
                f"the network's own score is {reference:g}; drop: is a constraint on an accuracy, a fraction of 1 of "
                f"which more is better: is it {percent}"
            )


@dataclass(frozen=True, init=False)
class LossIncrease(Target):
    """The validation loss is at most so much higher than the reference's.

    Attributes:
        percent: the largest increase, in percent of the reference's loss, at least 0.
    """

    percent: Fraction

    def __init__(self, percent: float | Fraction) -> None:
        """Sets the largest increase; 0 asks for a loss that is no higher.

        Raises:
            InvalidInputError: not a number of at least 0.
        """
        numeric = isinstance(percent, numbers.Real) and not isinstance(percent, bool)
        if not numeric or not 0 <= percent < float("inf"):
            refuse(percent, "an increase of the loss is a number of percent, at least 0")
        object.__setattr__(self, "percent", Fraction(str(percent)))

    def __str__(self) -> str:
        return f"loss:+{decimal(self.percent)}%"

    @property
    def strictness(self) -> Fraction:
        return self.percent

    def limit(self, reference: float) -> float:
        """Returns the highest loss that satisfies the constraint."""
        return reference * (1 + float(self.percent) / 100)

    def margin(self, score: float, reference: float) -> float:
        """Returns the slack, as a fraction of what is allowed; below 0: violated.

        Args:
            score: loss of the compressed network.
            reference: the same of the network that was given.
        """
        allowed = reference * float(max(self.percent, MIN_PERCENT)) / 100
        return (self.limit(reference) * (1 + ROUNDING) - score) / allowed

    @staticmethod
    def check_reference(reference: float) -> None:
        """Raises InvalidInputError for a loss that nothing can be a percentage of."""
        if not (math.isfinite(reference) and reference > 0):
            raise InvalidInputError(f"the network's own loss is {reference}; a part of it needs it finite and above 0")


QualityTarget = AccuracyDrop | LossIncrease


@word("drop")
def parse_accuracy_drop(whole: str, word: str, rest: str) -> AccuracyDrop:
    """Returns the target of `drop:0.5`."""
    if _NUMBER.fullmatch(rest.strip()) is None or Fraction(rest.strip()) >= 100:
        refuse(whole, "a fall of accuracy is given in points, at least 0 and below 100, without a unit (drop:0.5)")
    return AccuracyDrop(Fraction(rest.strip()))


@word("loss")
def parse_loss_increase(whole: str, word: str, rest: str) -> LossIncrease:
    """Returns the target of `loss:+2%`."""
    number, percent, more = rest.strip().removeprefix("+").partition("%")
    if not percent or more or _NUMBER.fullmatch(number.strip()) is None:
        refuse(whole, "an increase of the loss is given in percent, at least 0 (loss:+2%)")
    return LossIncrease(Fraction(number.strip()))
