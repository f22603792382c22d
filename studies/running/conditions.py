"""What a cell is run under, and what is handed from its search to its final training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Conditions:
    """Under which a cell is run; nothing here decides its outcome, but for what a number of threads does to sums.

    Attributes:
        study: that it is of.
        revision: of the code.
        folder: of the study on the runner's machine, where the references are.
        threads: of torch.
        ray_address: of the cluster on which Ray searches run.
        cpus, gpus: that a trial of those holds.
        storage: a folder that all processes of cells see, in which searches are kept while they run; None = nowhere.
    """

    study: str
    revision: str
    folder: str = ""
    threads: int = 1
    ray_address: str | None = None
    cpus: float = 1.0
    gpus: float = 0.0
    storage: str | None = None


@dataclass(frozen=True)
class Found:
    """What a search found and cost.

    Attributes:
        values: of the best plan; empty for the compressor, which searches nothing.
        gradient_steps, device_seconds, wall_seconds: of the whole search.
        anytime: as in `Record`.
        trials: every trial, in JSON.
        file: that the best trial wrote.
        error: traceback, where the search came to nothing.
    """

    values: dict[str, float] = field(default_factory=dict)
    gradient_steps: int = 0
    device_seconds: float = 0.0
    wall_seconds: float = 0.0
    anytime: list[list[float]] = field(default_factory=list)
    trials: list[dict[str, Any]] = field(default_factory=list)
    error: str | None = None
    file: bytes = b""
