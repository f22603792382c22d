"""The files that a run may return: what each scored, and which is taken."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.codec.file import decode_state
from autocompress.codec.layout import layout_of
from autocompress.network.compressed_tensors import CompressedState
from autocompress.network.live_network import copy_network
from autocompress.network.network_state import filled_copy

logger = logging.getLogger(__name__)

# Where a file's network comes from, in the order in which equals are preferred: the end of the run, the beginning of
# its fine-tuning, or the network as it was given, pruned and quantized at once.
TRAINED, BEFORE_FINE_TUNING, ONE_SHOT = "trained", "before fine-tuning", "one-shot"
ORIGINS = (TRAINED, BEFORE_FINE_TUNING, ONE_SHOT)

Key = tuple[float, ...]


@dataclass(frozen=True)
class Candidate:
    """A file within the target, and what it scored.

    Attributes:
        state: what the file holds.
        data: the file, uint8 [bytes].
        score: as `evaluate` returned it; NaN where nothing decides.
    """

    state: CompressedState
    data: Tensor
    score: float

    @property
    def file_bytes(self) -> int:
        return len(self.data)


def by_score(candidate: Candidate) -> Key:
    """Returns what is compared where every candidate meets the target: the score; one that is no number is the last."""
    return (candidate.score if math.isfinite(candidate.score) else -math.inf,)


class Candidates:
    """The best file of each origin.

    Attributes:
        best: by origin.
        unwritten: scores of networks of which no file was written, by origin.
        tried: (bytes, score) of every file.
    """

    def __init__(
        self,
        model: nn.Module,
        evaluate: Callable[[nn.Module], float] | None,
        key: Callable[[Candidate], Key] = by_score,
    ) -> None:
        """Holds nothing yet.

        Args:
            model: whose tensors the files hold.
            evaluate: score of a network on held-out data, if there is any.
            key: of the better of two candidates, the larger.
        """
        self.model, self.evaluate, self.key = model, evaluate, key
        self.best: dict[str, Candidate] = {}
        self.unwritten: dict[str, float] = {}
        self.tried: list[tuple[int, float]] = []

    def add(self, origin: str, state: CompressedState, data: bytes) -> Candidate:
        """Returns a file with its score, and keeps it if it is the best so far of its origin."""
        score = math.nan if self.evaluate is None else float(self.evaluate(filled_copy(self.model, state)))
        self.tried.append((len(data), score))
        candidate = Candidate(state, torch.frombuffer(bytearray(data), dtype=torch.uint8), score)
        if origin not in self.best or self.key(candidate) > self.key(self.best[origin]):
            self.best[origin] = candidate
        return candidate

    def may_be_best(self, origin: str, slack: float = 0.0) -> bool:
        """Tells whether the network as it is now is worth a file, by its score, and takes note of that.

        Args:
            origin: of the network.
            slack: the part of the best score by which it may be below it.
        """
        assert self.evaluate is not None
        self.unwritten[origin] = score = float(self.evaluate(copy_network(self.model)))
        best = max((each.score for each in self.best.values() if math.isfinite(each.score)), default=-math.inf)
        return math.isfinite(score) and score >= best - slack * abs(best)

    @property
    def origin(self) -> str:
        """Where the best of all comes from."""
        return max((o for o in ORIGINS if o in self.best), key=lambda origin: self.key(self.best[origin]))

    @property
    def chosen(self) -> Candidate:
        return self.best[self.origin]

    @property
    def scores(self) -> dict[str, float]:
        """The best score of each origin; empty where nothing decides."""
        if self.evaluate is None:
            return {}
        known = self.unwritten | {origin: each.score for origin, each in self.best.items()}
        return {origin: known[origin] for origin in ORIGINS if origin in known}

    def state_dict(self) -> dict[str, Any]:
        """Returns the files that may yet be chosen, and what was tried."""
        return {"best": {o: [each.data, each.score] for o, each in self.best.items()}, "tried": list(self.tried)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        layout = layout_of(self.model)
        self.best = {
            origin: Candidate(decode_state(data.numpy().tobytes(), layout), data, score)
            for origin, (data, score) in state["best"].items()
        }
        self.tried = [(size, score) for size, score in state["tried"]]
