"""An objective that trains nothing, for the tests of searchers: a smooth hill over two parameters."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from baselines.interface import Evaluation, Parameter, Progress, Report, Values, go_on


@dataclass(frozen=True)
class FakeSpace:
    name: str = "fake"
    parameters: tuple[Parameter, ...] = (
        Parameter("a.keep_fraction", 0.001, 1.0, log=True),
        Parameter("a.bits", 1, 6, integer=True),
    )
    start: dict[str, float] = field(default_factory=lambda: {"a.keep_fraction": 0.03, "a.bits": 3})


@dataclass(frozen=True)
class FakeObjective:
    """The accuracy rises with the epochs towards a value that is best at keep_fraction 0.1 and 4 bits.

    Attributes:
        seconds_per_epoch: slept in each epoch.
        fails_at: epoch at which every evaluation raises, or 0.
        log: file to which lines "pid start|stay|end" of each evaluation are appended, or None.
        stays_after: once the log has so many ends, what starts stays and never ends by itself (0: everything ends).
            For tests that kill: however slow the machine, the kill finds an evaluation under way.
        together: no evaluation goes on before so many processes have begun one.
    """

    epochs: int = 3
    seconds_per_epoch: float = 0.0
    fails_at: int = 0
    log: str | None = None
    stays_after: int = 0
    together: int = 0
    steps_per_epoch: int = 0
    space: FakeSpace = field(default_factory=FakeSpace)

    @property
    def identity(self) -> dict[str, Any]:
        return {"task": "fake", "epochs": self.epochs}

    def __call__(self, values: Values, report: Report = go_on, state: dict[str, Any] | None = None) -> Evaluation:
        import math

        self._note("start", values)
        self._wait(values)
        started = time.perf_counter()
        keep, bits = values["a.keep_fraction"], values["a.bits"]
        top = 0.99 - 0.1 * math.log10(keep / 0.1) ** 2 - 0.02 * (bits - 4) ** 2
        curve: list[tuple[int, float]] = []
        stopped = False
        first = 0 if state is None else int(state["epoch"])
        for epoch in range(first + 1, self.epochs + 1):
            time.sleep(self.seconds_per_epoch)
            if epoch == self.fails_at:
                raise RuntimeError(f"failed on purpose in epoch {epoch}")
            accuracy = top - 0.3 / epoch
            curve.append((10 * (epoch - first), accuracy))
            progress = Progress(
                epoch, accuracy, 10 * (epoch - first), time.perf_counter() - started, lambda e=epoch: {"epoch": e}
            )
            if report(progress):
                stopped = True
                break
        self._note("end", values)
        return Evaluation(
            accuracy=curve[-1][1] if curve else top,
            size=0 if stopped else int(1000 * keep * bits) + 1,
            gradient_steps=10 * len(curve),
            device_seconds=time.perf_counter() - started,
            curve=tuple(curve),
            plan={"a": {"keep_fraction": keep, "codebook": 2 ** int(bits)}},
            stopped=stopped,
        )

    def _wait(self, values: Values) -> None:
        if self.log is None:
            return
        while len({pid for pid, _ in self._noted()}) < self.together:
            time.sleep(0.02)
        while self.together and self._ended() < self.stays_after:  # or the others end all before its next one
            time.sleep(0.02)
        if 0 < self.stays_after <= self._ended():
            self._note("stay", values)
            while True:
                time.sleep(0.05)

    def _ended(self) -> int:
        return sum(what == "end" for _, what in self._noted())

    def _noted(self) -> list[list[str]]:
        return [line.split()[:2] for line in Path(self.log or "").read_text().splitlines()]

    def _note(self, what: str, values: Values) -> None:
        if self.log is not None:
            with Path(self.log).open("a") as file:
                file.write(f"{os.getpid()} {what} {sorted(values.items())}\n")
