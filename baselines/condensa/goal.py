"""What a search of Condensa's is to keep, and what is best of what keeps it.

Both goals are a level of something that changes one way with the density: validation accuracy, which rises with it, or
the size of the file, which does, too. What keeps the goal lies on one side of the level, and there the other is best.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from autocompress.errors import InvalidInputError
from autocompress.targets import AccuracyDrop, FileSize, combined
from baselines.interface import SearchOutcome, Trial

EXAMPLES = '"drop:0.5" (points of validation accuracy that may be lost) or a file size such as "4KB"'


Asked = AccuracyDrop | FileSize


def parse_asked(texts: Sequence[str | Asked] | str | Asked) -> Asked:
    """Returns what a search is asked for.

    Raises:
        InvalidInputError: it is not one accuracy drop or one file size.
    """
    several = [texts] if isinstance(texts, str | Asked) else list(texts)
    if len(several) != 1:
        raise InvalidInputError(f"condensa takes one target, not {len(several)}: {EXAMPLES}")
    target = combined(several[0]).only
    if not isinstance(target, Asked):
        raise InvalidInputError(f"condensa cannot search for the target {str(target)!r}; give {EXAMPLES}")
    return target


@dataclass(frozen=True)
class KeepAccuracy:
    """The smallest file among those whose validation accuracy is at least a level.

    Attributes:
        accuracy: the level, a fraction of 1.
        kept_when_dense: what keeps the goal lies at the dense end.
    """

    accuracy: float
    kept_when_dense: bool = True

    def margin(self, accuracy: float, size: int) -> float:
        """Returns by how much the goal is kept, below 0 where it is not; a right answer more or less is not lost."""
        return accuracy - self.accuracy + 1e-9

    def worth(self, accuracy: float, size: int) -> float:
        """Returns what is to be largest: minus the logarithm of the bytes."""
        return -math.log(max(size, 1))


@dataclass(frozen=True)
class FitSize:
    """The highest validation accuracy among the files of at most a number of bytes.

    Attributes:
        limit_bytes: the level.
        kept_when_dense: what keeps the goal lies at the sparse end.
    """

    limit_bytes: int
    kept_when_dense: bool = False

    def margin(self, accuracy: float, size: int) -> float:
        """Returns by how much the goal is kept, in the logarithm of the bytes; below 0 where it is not."""
        return math.log(self.limit_bytes / max(size, 1))

    def worth(self, accuracy: float, size: int) -> float:
        """Returns what is to be largest: the accuracy."""
        return accuracy


Goal = KeepAccuracy | FitSize


@dataclass(frozen=True, kw_only=True)
class KeptOutcome(SearchOutcome):
    """A search whose best trial is the best of those that keep a goal."""

    goal: Goal

    def keeps(self, trial: Trial) -> bool:
        """Tells whether a trial came to its end and keeps the goal."""
        return trial.state == "complete" and self._margin(trial) >= 0

    @property
    def best(self) -> Trial | None:
        """The best that keeps the goal, of equals the first; without any, the complete trial that is nearest to it."""
        complete = [trial for trial in self.trials if trial.state == "complete" and trial.accuracy is not None]
        kept = [trial for trial in complete if self.keeps(trial)]
        if kept:
            return max(kept, key=lambda t: (self.goal.worth(t.accuracy or 0.0, t.size), -t.number))
        return max(complete, key=lambda t: (self._margin(t), -t.number), default=None)

    def _margin(self, trial: Trial) -> float:
        return self.goal.margin(trial.accuracy or 0.0, trial.size)
