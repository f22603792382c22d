"""A Ray search on disk: what is searched (`search.json`), and line by line what has happened (`trials.jsonl`).

Every line is whole or is not read, and the search is rebuilt from the lines alone. So a driver that is killed loses no
trial that ended, and nothing depends on when Ray Tune saves its own state.
"""

from __future__ import annotations

import base64
import json
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autocompress.codec.atomic_write import write_whole
from autocompress.errors import InvalidInputError
from baselines.interface import State, Trial, score_of

logger = logging.getLogger(__name__)
Event = dict[str, Any]


@dataclass
class History:
    """What is known of one trial.

    A *part* is one call of the objective. A trial has several where it failed and was started again, or where
    population based training paused it; the costs of all parts count.

    Attributes:
        number: of the trial.
        values: what was proposed, or mutated to.
        state: None until it is final.
        attempts, failures, losses: times it was started, times it failed, times its node or process was lost.
        points: (part, epoch, gradient steps of the part, validation accuracy) since the last start from scratch.
        reported: (epoch, score) of each report since then.
        steps, seconds: of each part.
        checkpoint: folder of the newest one, or None.
        own_seconds: spent on this trial in the code of this package, the objective's work not included.
    """

    number: int
    values: dict[str, float] = field(default_factory=dict)
    state: State | None = None
    attempts: int = 0
    failures: int = 0
    losses: int = 0
    points: list[tuple[str, int, int, float]] = field(default_factory=list)
    reported: list[tuple[int, float]] = field(default_factory=list)
    loss: float | None = None
    steps: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    node: str = ""
    error: str | None = None
    checkpoint: str | None = None
    own_seconds: float = 0.0

    def add(self, event: Event) -> None:
        kind = event["event"]
        if kind == "start":
            self.values, self.attempts = event["values"], self.attempts + 1
        elif kind == "report":
            self._add_report(event)
        elif kind == "failure":
            self.failures, self.error = self.failures + 1, event["error"]
        elif kind == "loss":
            self.losses, self.error = self.losses + 1, event["error"]
        elif kind == "checkpoint":
            self.checkpoint = event["checkpoint"]
        elif kind == "end":
            self.state = event["state"]
            self.error = self.error if self.state == "failed" else None
        elif kind == "overhead":
            self.own_seconds = event["own_seconds"]

    def _add_report(self, event: Event) -> None:
        part = event["part"]
        if event["from_scratch"] and part not in self.steps:
            self.points, self.reported = [], []
        self.loss = event.get("loss")
        self.reported.append((event["epoch"], score_of(event["accuracy"], self.loss)))
        self.values, self.node = event["values"], event["node"]
        self.steps[part], self.seconds[part] = event["gradient_steps"], event["device_seconds"]
        self.evaluation = event["evaluation"] or {}
        if not self.evaluation:
            self.points.append((part, event["epoch"], event["gradient_steps"], event["accuracy"]))
            return
        # The last epoch comes with the evaluation, whose curve knows all epochs of its part.
        earlier = [point for point in self.points if point[0] != part]
        curve = self.evaluation["curve"]
        first = event["epoch"] - len(curve) + 1
        self.points = earlier + [(part, first + i, steps, accuracy) for i, (steps, accuracy) in enumerate(curve)]

    @property
    def curve(self) -> tuple[tuple[int, float], ...]:
        """(gradient steps since the last start from scratch, validation accuracy) after each epoch."""
        curve: list[tuple[int, float]] = []
        before, part_before = 0, None
        for part, _, steps, accuracy in self.points:
            if part_before is not None and part != part_before:
                before += self.steps[part_before]
            part_before = part
            curve.append((before + steps, accuracy))
        return tuple(curve)

    def trial(self) -> Trial:
        assert self.state is not None
        reported = self.points[-1][3] if self.points else None
        return Trial(
            number=self.number,
            state=self.state,
            values=self.values,
            accuracy=self.evaluation.get("accuracy", reported),
            size=self.evaluation.get("size", 0),
            gradient_steps=sum(self.steps.values()),
            device_seconds=sum(self.seconds.values()),
            curve=self.curve,
            plan=self.evaluation.get("plan", {}),
            node=self.node,
            attempts=max(1, self.attempts),
            error=self.error,
            loss=self.loss,
            file=base64.b64decode(self.evaluation.get("file", "")),
        )


class SearchFolder:
    """The folder of one search; may be pickled."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._identity, self._events = path / "search.json", path / "trials.jsonl"

    def open(self, identity: dict[str, Any], resume: bool) -> None:
        """Makes the folder ready for the search that `identity` describes.

        Raises:
            InvalidInputError: it holds a search and `resume` is not set, or it holds another one.
        """
        if self._events.exists():  # otherwise nothing has been started yet
            if not resume:
                raise InvalidInputError(
                    f"storage {str(self.path)!r} holds a search already: resume it, or name another folder"
                )
            self._compare(identity)
            self._cut_torn_line()
            return
        if resume:
            logger.warning("there is no search in %s to be resumed; a new one begins", self.path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_whole(self._identity, json.dumps(identity, indent=1).encode())
        except OSError as error:
            raise InvalidInputError(f"storage {str(self.path)!r} cannot be written: {error}") from error

    def append(self, event: Event) -> None:
        """Adds one line; what ends a trial reaches the disk before this returns."""
        with self._events.open("a") as file:
            file.write(json.dumps(event) + "\n")
            if event["event"] in ("end", "failure", "loss"):
                file.flush()
                os.fsync(file.fileno())

    def histories(self) -> dict[int, History]:
        found: dict[int, History] = {}
        for line in self._events.read_text().splitlines() if self._events.exists() else []:
            try:
                event = json.loads(line)
            except ValueError:  # the driver was killed in the middle of this line
                logger.warning("a line of %s is not whole and is left out", self._events)
                continue
            found.setdefault(event["number"], History(event["number"])).add(event)
        return found

    def _compare(self, identity: dict[str, Any]) -> None:
        try:
            kept = json.loads(self._identity.read_text())
        except (OSError, ValueError) as error:
            raise InvalidInputError(f"{self._identity} cannot be read ({error}): name another folder") from error
        wanted = json.loads(json.dumps(identity))
        for key in sorted({*kept, *wanted}):
            if kept.get(key) != wanted.get(key):
                raise InvalidInputError(
                    f"storage {str(self.path)!r} holds another search: its {key} is {kept.get(key)!r}, "
                    f"not {wanted.get(key)!r}"
                )

    def _cut_torn_line(self) -> None:
        """Ends a line that a killed driver left open, so that the next one starts anew."""
        if self._events.exists() and not self._events.read_bytes().endswith(b"\n"):
            with self._events.open("a") as file:
                file.write("\n")
