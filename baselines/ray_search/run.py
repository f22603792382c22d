"""One search with Ray Tune, from the first round to the last: every number ends in one final state."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy
import ray
from ray import tune

from autocompress.errors import AutocompressError, InvalidInputError
from baselines.interface import Objective, SearchOutcome, SearchSettings
from baselines.progress import SearchDisplay
from baselines.ray_search.callback import Interrupt, Recorder, interruptible
from baselines.ray_search.cluster import connected, machines, quiet
from baselines.ray_search.parts import Search, parts_of
from baselines.ray_search.records import SearchFolder
from baselines.ray_search.searchers import RayPbt, RaySearcher
from baselines.ray_search.trainable import trainable

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
            interrupted = _run(Search(method, objective, settings, folder, histories, recorder))
    trials = [history.trial() for _, history in sorted(folder.histories().items()) if history.state]
    errors = [trial.error or "" for trial in trials if trial.state == "failed"]
    if len(errors) == settings.trials and all(InvalidInputError.__name__ in error for error in errors):
        raise InvalidInputError(f"the objective refused every proposal: {errors[0].strip().splitlines()[-1]}")
    return SearchOutcome(tuple(trials), interrupted)


def _run(search: Search) -> bool:
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


def _round(search: Search, reference: Any, interrupt: Interrupt) -> None:
    method, settings = search.method, search.settings
    parts = parts_of(search)
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
