"""One search with Ray Tune, from the first round to the last: every number ends in one final state."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy
import ray
from ray import tune

from autocompress.errors import AutocompressError, InvalidInputError
from baselines.interface import Objective, SearchOutcome, SearchSettings
from baselines.progress import SearchDisplay
from baselines.ray_search.callback import Interrupt, Recorder, interruptible
from baselines.ray_search.cluster import HeadLostError, all_see, connected, quiet
from baselines.ray_search.parts import Search, parts_of
from baselines.ray_search.records import History, SearchFolder
from baselines.ray_search.searchers import RayPbt, RaySearcher
from baselines.ray_search.trainable import Checkpoints, trainable
from baselines.spending import Spending

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
        forgets = not isinstance(method, RayPbt)
        spending = Spending.of(settings, objective)
        recorder = Recorder(folder, histories, settings.retries, display.finished, spending, forgets)
        if len(done) < settings.trials:
            try:
                interrupted = _run(Search(method, objective, settings, folder, histories, recorder))
            except HeadLostError as error:
                raise HeadLostError(f"{error}; {_what_is_kept(histories, settings)}") from error
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
    with interruptible(search.recorder.spending) as interrupt, quiet(), _seeded(settings.seed):
        try:
            last_words = partial(_what_is_kept, search.histories, settings)
            with connected(settings, search.method.modules, interrupt.end_at_once, last_words):
                shared = _is_shared(search)
                reference = ray.put(search.objective)
                while search.affordable and not interrupt.is_set:
                    before = search.attempts
                    _round(search, reference, interrupt, shared)
                    if search.attempts == before and not interrupt.is_set:
                        raise AutocompressError(f"Ray Tune ended without starting the trials {search.open}")
        except KeyboardInterrupt:
            return search.affordable
    return interrupt.is_set and search.affordable


def _is_shared(search: Search) -> bool:
    """Tells whether all nodes see the folder of the search, so that a trial can go on elsewhere.

    Raises:
        InvalidInputError: they do not, and the method cannot do without.
    """
    if all_see(search.folder.path):
        return True
    if isinstance(search.method, RayPbt):
        raise InvalidInputError(
            f"not all nodes of the cluster see {str(search.folder.path)!r}; ray-pbt on several machines needs a "
            "storage that all of them see"
        )
    logger.warning(
        "not all nodes of the cluster see %s: a trial whose node is lost begins anew, and does not go on from its last "
        "epoch; name a storage that all see",
        search.folder.path,
    )
    return False


def _what_is_kept(histories: Mapping[int, History], settings: SearchSettings) -> str:
    ended = sum(history.state is not None for history in list(histories.values()))
    if settings.storage is None:
        return "without a storage nothing of the search is kept"
    return (
        f"the {ended} of {settings.trials} trials that had ended are kept in {settings.storage!r}: once the cluster "
        "runs again, go on by resuming"
    )


def _round(search: Search, reference: Any, interrupt: Interrupt, shared: bool) -> None:
    method, settings = search.method, search.settings
    parts = parts_of(search)
    function = trainable(
        reference, max(1, int(settings.cpus_per_trial)), parts.checkpoints if shared else Checkpoints()
    )
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
            checkpoint_config=tune.CheckpointConfig(num_to_keep=KEPT_CHECKPOINTS if isinstance(method, RayPbt) else 1),
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
