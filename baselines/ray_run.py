"""One search with Ray Tune, from the first round to the last: every number ends in one final state."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import numpy
import ray
from ray import tune
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial as RayTrial
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search import SearchAlgorithm, Searcher

from autocompress.errors import AutocompressError, InvalidInputError
from baselines.interface import Objective, SearchOutcome, SearchSettings
from baselines.progress import SearchDisplay
from baselines.ray_callback import Interrupt, Recorder, interruptible
from baselines.ray_cluster import connected, machines, quiet
from baselines.ray_population import Mutation, Population, TurnTaking
from baselines.ray_proposals import NumberedOptuna, Proposal
from baselines.ray_records import History, SearchFolder
from baselines.ray_search import RayAsha, RayPbt, RaySearcher
from baselines.ray_trainable import trainable

logger = logging.getLogger(__name__)
KEPT_CHECKPOINTS = 4  # of a trial: those that others may be about to go on from included


def run_search(
    method: RaySearcher, objective: Objective, settings: SearchSettings, folder: SearchFolder
) -> SearchOutcome:
    """Returns the search in `folder`, gone on with until every trial is in its final state, or until Ctrl-C.

    Ray Tune's own restore is not used: it saves its state every ten seconds and so runs again what ended in between,
    and it forgets what the scheduler had learned. The records know both.
    """
    histories = folder.histories()
    done = [history.trial() for history in histories.values() if history.state]
    interrupted = False
    with SearchDisplay(settings.trials, done, progress=settings.progress) as display:
        recorder = Recorder(folder, histories, settings.retries, display.finished)
        if len(done) < settings.trials:
            interrupted = _run(_Search(method, objective, settings, folder, histories, recorder))
    trials = [history.trial() for _, history in sorted(folder.histories().items()) if history.state]
    errors = [trial.error or "" for trial in trials if trial.state == "failed"]
    if len(errors) == settings.trials and all(InvalidInputError.__name__ in error for error in errors):
        raise InvalidInputError(f"the objective refused every proposal: {errors[0].strip().splitlines()[-1]}")
    return SearchOutcome(tuple(trials), interrupted)


@dataclass(frozen=True)
class _Search:
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

    def _is_done(self, number: int) -> bool:
        return number in self.histories and self.histories[number].state is not None

    @property
    def attempts(self) -> int:
        """Attempts of all trials so far, those included that Ray ended before they could start."""
        return sum(history.attempts + history.failures for history in self.histories.values())


def _run(search: _Search) -> bool:
    """Runs what is open and returns whether Ctrl-C ended it.

    One round of Ray Tune is enough as a rule. It gives up a trial whose actor is lost while it waits for work,
    whatever retries are left; the next round takes that up.
    """
    settings = search.settings
    with interruptible() as interrupt, quiet(), _seeded(settings.seed):
        try:
            with connected(settings, search.method.modules):
                if isinstance(search.method, RayPbt) and settings.storage is None and machines() > 1:
                    raise InvalidInputError("ray-pbt on several machines needs a storage that all of them see")
                reference = ray.put(search.objective)
                while search.open and not interrupt.is_set:
                    before = search.attempts
                    _round(search, reference, interrupt)
                    if search.attempts == before and not interrupt.is_set:
                        raise AutocompressError(f"Ray Tune ended without starting the trials {search.open}")
        except KeyboardInterrupt:
            return bool(search.open)
    return interrupt.is_set and bool(search.open)


def _round(search: _Search, reference: Any, interrupt: Interrupt) -> None:
    method, settings = search.method, search.settings
    parts = _population(search, method) if isinstance(method, RayPbt) else _proposed(search, method)
    function = trainable(reference, max(1, int(settings.cpus_per_trial)), parts.checkpoint_epochs)
    # Ray knows no bundle without any resource.
    cpus = settings.cpus_per_trial or (0.0 if settings.gpus_per_trial else 0.001)
    folder = search.folder.path / "ray"
    tuner = tune.Tuner(
        tune.with_resources(function, {"cpu": cpus, "gpu": settings.gpus_per_trial}),
        param_space=parts.configurations,
        tune_config=tune.TuneConfig(
            search_alg=parts.proposals,
            scheduler=parts.scheduler,
            num_samples=parts.samples,
            max_concurrent_trials=None if isinstance(method, RayPbt) else settings.workers,
            reuse_actors=True,
            trial_name_creator=_short_name,
            trial_dirname_creator=_short_name,
        ),
        run_config=tune.RunConfig(
            name=f"round-{sum(1 for _ in folder.glob('round-*'))}",
            storage_path=str(folder),
            callbacks=[search.recorder],
            failure_config=tune.FailureConfig(max_failures=settings.retries),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=KEPT_CHECKPOINTS),
            stop=interrupt,
            verbose=0,
        ),
    )
    tuner.fit()


def _short_name(trial: Any) -> str:
    return str(trial.trial_id)


@dataclass(frozen=True)
class _Parts:
    """What the methods differ in.

    Attributes:
        proposals, scheduler: as Ray Tune takes them; None = no trial is stopped.
        samples: trials that the proposals are asked for, times the configurations.
        configurations: of a population; None where the proposals bring their own.
        checkpoint_epochs: as in `trainable`.
    """

    proposals: Searcher | SearchAlgorithm
    scheduler: TrialScheduler | None
    samples: int
    configurations: dict[str, Any] | None = None
    checkpoint_epochs: int = 0


def _proposed(search: _Search, method: RaySearcher) -> _Parts:
    settings, epochs = search.settings, search.objective.epochs
    begun = search.histories
    again = [{"number": number, "values": begun[number].values} for number in search.open if number in begun]
    numbers = [number for number in search.open if number not in begun]
    if 0 in numbers:
        again.append({"number": 0, "values": dict(search.objective.space.start)})
        numbers.remove(0)
    done = [history for history in begun.values() if history.state]
    # A resumed search must not draw again what was drawn at its start.
    seed = int(numpy.random.SeedSequence([settings.seed, len(begun)]).generate_state(1)[0]) if begun else settings.seed
    sampler = method.proposals if isinstance(method, RayAsha) else "tpe"
    proposals = NumberedOptuna(search.objective.space, sampler, seed, again, numbers, done)
    scheduler = _asha(method, epochs, done) if isinstance(method, RayAsha) else None
    return _Parts(proposals, scheduler, len(search.open))


def _asha(method: RayAsha, epochs: int, done: list[History]) -> TrialScheduler:
    """Returns the scheduler, with the epochs of the finished trials in its rungs."""
    scheduler = ASHAScheduler(
        time_attr="epoch",
        metric="accuracy",
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
        for _, epoch, _, accuracy in history.points:
            scheduler.on_trial_result(loop, trial, {"epoch": epoch, "accuracy": accuracy})
    return scheduler


def _population(search: _Search, method: RayPbt) -> _Parts:
    settings, space = search.settings, search.objective.space
    mutation = Mutation(space.parameters, settings.seed)
    drawn = [dict(space.start), *(mutation.draw() for _ in range(settings.trials - 1))]
    proposals: list[Proposal] = [
        {"number": number, "values": history.values, "checkpoint": history.checkpoint}
        if (history := search.histories.get(number))
        else {"number": number, "values": drawn[number]}
        for number in search.open
    ]
    round_epochs = max(1, search.objective.epochs // method.rounds)
    return _Parts(
        Population(settings.workers),
        TurnTaking(settings.workers, round_epochs, mutation),
        1,
        {"proposal": tune.grid_search(proposals)},
        round_epochs,
    )


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seeds the global generators, which Ray Tune's schedulers draw from, and puts their states back at the end."""
    states = random.getstate(), numpy.random.get_state()
    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    try:
        yield
    finally:
        random.setstate(states[0])
        numpy.random.set_state(states[1])
