"""What the three Ray searches hand to Ray Tune: proposals, scheduler, checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import numpy
from ray import tune
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial as RayTrial
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search import SearchAlgorithm, Searcher

from baselines.interface import Objective, SearchSettings, starts_of
from baselines.optuna_search.samplers import SAMPLERS
from baselines.ray_search.callback import Recorder
from baselines.ray_search.population import Mutation, Population, TurnTaking
from baselines.ray_search.proposals import NumberedOptuna, Proposal
from baselines.ray_search.records import History, SearchFolder
from baselines.ray_search.searchers import RayAsha, RayPbt, RaySearcher
from baselines.ray_search.trainable import Checkpoints


@dataclass(frozen=True)
class Search:
    """One search and how far it has come."""

    method: RaySearcher
    objective: Objective
    settings: SearchSettings
    folder: SearchFolder
    histories: dict[int, History]
    recorder: Recorder

    @property
    def open(self) -> list[int]:
        """Numbers of the trials that are not in a final state."""
        return [number for number in range(self.settings.trials) if not self._is_done(number)]

    @property
    def affordable(self) -> bool:
        """Whether there are open trials, and one of them may begin."""
        numbers = self.open
        self.recorder.spending.forget(numbers)
        return any(self.recorder.spending.allows(number) for number in numbers[:1])

    def _is_done(self, number: int) -> bool:
        return number in self.histories and self.histories[number].state is not None

    @property
    def attempts(self) -> int:
        """Attempts of all trials so far, those included that Ray ended before they could start."""
        return sum(history.attempts + history.failures + history.losses for history in self.histories.values())


@dataclass(frozen=True)
class Parts:
    """What the methods differ in.

    Attributes:
        proposals, scheduler: as Ray Tune takes them; None = no trial is stopped.
        samples: trials that the proposals are asked for, times the configurations.
        configurations: of a population; None where the proposals bring their own.
        checkpoints: as in `trainable`.
    """

    proposals: Searcher | SearchAlgorithm
    scheduler: TrialScheduler | None
    samples: int
    configurations: dict[str, Any] | None = None
    checkpoints: Checkpoints = field(default_factory=Checkpoints)


def parts_of(search: Search) -> Parts:
    """Returns what the method of a search hands to Ray Tune for the trials that are open."""
    method = search.method
    return _population(search, method) if isinstance(method, RayPbt) else _proposed(search, method)


def _proposed(search: Search, method: RaySearcher) -> Parts:
    settings, epochs = search.settings, search.objective.epochs
    begun = search.histories
    again: list[Proposal] = [
        {"number": number, "values": begun[number].values, "checkpoint": begun[number].checkpoint}
        for number in search.open
        if number in begun
    ]
    numbers = [number for number in search.open if number not in begun]
    for number, values in enumerate(starts_of(search.objective.space)):
        if number in numbers:
            again.append({"number": number, "values": values})
            numbers.remove(number)
    done = [history for history in begun.values() if history.state]
    # A resumed search must not draw again what was drawn at its start.
    seed = int(numpy.random.SeedSequence([settings.seed, len(begun)]).generate_state(1)[0]) if begun else settings.seed
    kind = "random" if isinstance(method, RayAsha) and method.proposals == "random" else "optuna-tpe"
    sampler = SAMPLERS[kind](seed, settings.trials, search.objective.space, settings.workers)
    proposals = NumberedOptuna(search.objective.space, sampler, again, numbers, done, search.recorder.spending)
    scheduler = _asha(method, epochs, done) if isinstance(method, RayAsha) else None
    return Parts(proposals, scheduler, len(search.open), checkpoints=Checkpoints(1, method.checkpoint_seconds))


def _asha(method: RayAsha, epochs: int, done: list[History]) -> TrialScheduler:
    """Returns the scheduler, with the epochs of the finished trials in its rungs."""
    scheduler = ASHAScheduler(
        time_attr="epoch",
        metric="score",
        mode="max",
        max_t=max(epochs, method.grace_epochs),
        grace_period=method.grace_epochs,
        reduction_factor=method.reduction_factor,
        stop_last_trials=False,
    )
    for history in done:
        # All that the scheduler asks of a trial is its name, and it asks nothing of Ray Tune's loop.
        loop, trial = cast(TuneController, None), cast(RayTrial, SimpleNamespace(trial_id=f"number-{history.number}"))
        scheduler.on_trial_add(loop, trial)
        for epoch, score in history.reported:
            scheduler.on_trial_result(loop, trial, {"epoch": epoch, "score": score})
    return scheduler


def _population(search: Search, method: RayPbt) -> Parts:
    settings, space = search.settings, search.objective.space
    mutation = Mutation(space.parameters, settings.seed)
    drawn = [*starts_of(space)[: settings.trials]]
    drawn += [mutation.draw() for _ in range(settings.trials - len(drawn))]
    proposals: list[Proposal] = [
        {"number": number, "values": history.values, "checkpoint": history.checkpoint}
        if (history := search.histories.get(number))
        else {"number": number, "values": drawn[number]}
        for number in search.recorder.spending.side_by_side(search.open)
    ]
    round_epochs = max(1, search.objective.epochs // method.rounds)
    return Parts(
        Population(settings.workers),
        TurnTaking(settings.workers, round_epochs, mutation),
        1,
        {"proposal": tune.grid_search(proposals)},
        Checkpoints(round_epochs),
    )
