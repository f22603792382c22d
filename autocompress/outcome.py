"""What a run has to say of its own result: which network was taken and why, and what is odd about it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from autocompress.network.compressed_tensors import CompressedState

# The networks that a run chooses between.
TRAINED, BEFORE_FINE_TUNING, ONE_SHOT = "trained", "before fine-tuning", "one-shot"
# Names listed in one sentence.
NAMES_SHOWN = 5


@dataclass(frozen=True)
class Outcome:
    """Nothing that a user would want to know of is left to be guessed.

    Attributes:
        chosen: the network that was taken: "trained", "before fine-tuning" or "one-shot" (as it was given, pruned and
            quantized at once).
        judged_by: what decided: a phrase such as "the loss on the validation data", or "" where nothing did.
        scores: of each network by that measure, higher is better.
        zero_layers: compressed tensors of which every weight is zero.
        layers: number of compressed tensors.
        skipped_steps: steps of fine-tuning whose gradients were not finite.
        greedy: whether a knapsack was solved by the greedy rule where an exact answer was looked for.
        promise_kept: whether a promise was kept; None where there is none.
    """

    chosen: str
    judged_by: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)
    zero_layers: tuple[str, ...] = ()
    layers: int = 0
    skipped_steps: int = 0
    greedy: bool = False
    promise_kept: bool | None = None

    @property
    def notes(self) -> list[str]:
        """What has to be said in so many words; empty where all went as it should."""
        found = []
        if self.layers and len(self.zero_layers) == self.layers:
            found.append("every compressed weight is zero: the network no longer depends on its input")
        elif self.zero_layers:
            more = len(self.zero_layers) - NAMES_SHOWN
            names = ", ".join(self.zero_layers[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
            found.append(f"every weight is zero in {names}")
        if self.promise_kept is False:
            found.append("the promise was not kept by any network that was seen")
        if self.chosen == ONE_SHOT and len(self.scores) > 1:
            found.append(
                "training did not help: the network as it was given, pruned and quantized at once, is better by "
                f"{self.judged_by}; train for longer, or at another learning rate"
            )
        if self.chosen == TRAINED and not self.judged_by:
            found.append("no data decided between this network and others: give val= or evaluate=")
        if self.skipped_steps:
            found.append(f"{self.skipped_steps} steps of fine-tuning were skipped: their gradients were not finite")
        if self.greedy:
            found.append("bits were shared out by the greedy rule; an exact answer would have taken too long")
        return found

    def to_json(self) -> dict[str, Any]:
        """Returns an object of JSON; scores that are no numbers are None."""
        return {
            "chosen": self.chosen,
            "judged_by": self.judged_by,
            "scores": {name: score if math.isfinite(score) else None for name, score in self.scores.items()},
            "zero_layers": list(self.zero_layers),
            "skipped_steps": self.skipped_steps,
            "greedy": self.greedy,
            "notes": self.notes,
        }


def zero_layers(state: CompressedState) -> tuple[str, ...]:
    """Returns the names of the compressed tensors of which every weight is zero."""
    return tuple(name for name, tensor in state.coded.items() if not tensor.nonzeros)
