"""The finished files of a run with a promise: what each scored, and which to keep."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.network.compressed_tensors import CompressedState
from autocompress.network.network_state import filled_copy

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidate:
    """A finished file and what it scored.

    Attributes:
        data: the file, uint8 [bytes].
        score: as `evaluate` returned it.
        margin: how much of what the promise allows is left over.
    """

    data: Tensor
    score: float
    margin: float

    @property
    def keeps(self) -> bool:
        """Whether the promise is kept."""
        return self.margin >= 0

    @property
    def file_bytes(self) -> int:
        return len(self.data)

    def better_than(self, other: Candidate | None) -> bool:
        """Tells which to keep: a kept promise before all, then the smaller file; among broken ones the least broken."""
        if other is None or self.keeps != other.keeps:
            return other is None or self.keeps
        if self.keeps:
            return (self.file_bytes, -self.margin) < (other.file_bytes, -other.margin)
        return self.margin > other.margin


class Candidates:
    """All files that a run wrote and scored.

    Attributes:
        best: the smallest that keeps the promise, or the most accurate one where none does; of trained networks.
        fallback: one of the network as it was given.
        tried: (bytes, score) of each.
    """

    def __init__(
        self, model: nn.Module, evaluate: Callable[[nn.Module], float], margin: Callable[[float], float]
    ) -> None:
        """Holds nothing yet.

        Args:
            model: whose tensors the files hold.
            evaluate: score of a network on held-out data.
            margin: how much of what the promise allows is left over at a score.
        """
        self.model, self.evaluate, self.margin = model, evaluate, margin
        self.best: Candidate | None = None
        self.fallback: Candidate | None = None
        self.tried: list[tuple[int, float]] = []

    def score(self, state: CompressedState, data: bytes) -> Candidate:
        """Returns a file with its score, and takes note of both."""
        score = float(self.evaluate(filled_copy(self.model, state)))
        self.tried.append((len(data), score))
        return Candidate(torch.frombuffer(bytearray(data), dtype=torch.uint8), score, self.margin(score))

    def add(self, state: CompressedState, data: bytes) -> Candidate:
        """Returns a file with its score, and keeps it if it is the best so far."""
        candidate = self.score(state, data)
        if candidate.better_than(self.best):
            self.best = candidate
        return candidate

    @property
    def chosen(self) -> Candidate:
        """The better of `best` and `fallback`."""
        assert self.best is not None
        return self.fallback if self.fallback is not None and self.fallback.better_than(self.best) else self.best

    def state_dict(self) -> dict[str, Any]:
        """Returns the files that may yet be chosen, and what was tried."""
        return {"best": _packed(self.best), "fallback": _packed(self.fallback), "tried": list(self.tried)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.fallback = (
            None if state[name] is None else Candidate(*state[name]) for name in ("best", "fallback")
        )
        self.tried = [(size, score) for size, score in state["tried"]]


def _packed(candidate: Candidate | None) -> list[Any] | None:
    return None if candidate is None else [candidate.data, candidate.score, candidate.margin]
