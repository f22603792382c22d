"""`python -m baselines search`: a task, a reference network, a search, the best plan trained to its end, a file."""

from __future__ import annotations

import shlex
from argparse import Namespace
from pathlib import Path
from typing import Any

from autocompress.cli.console import check_output, percent, save_or_keep, to_json
from autocompress.constraints.constraint import Network
from autocompress.errors import InvalidInputError
from autocompress.network.selection import select
from autocompress.targets import Target
from autocompress.task import Task, load_task
from autocompress.training.reference import starting_network
from baselines.interface import SearchOutcome, SearchSettings
from baselines.methods import find_method, find_space
from baselines.search import best_of, make_searcher, search, train_best
from baselines.search_files import beside, checkpoint_of, write_records
from baselines.search_report import search_json, search_text
from baselines.systems import System, system_of

TRIALS_PER_FINAL = 10


class InterruptedSearchError(KeyboardInterrupt):
    """Ctrl-C, with what there is by now and how to go on."""


def search_command(options: Namespace) -> str:
    """Searches, trains the best plan, writes `options.out` and returns the report, or the JSON object.

    Everything that can be wrong with the command is found before anything is trained. The records of all trials are
    written beside `options.out`, after Ctrl-C, too.

    Raises:
        InvalidInputError, InfeasibleTargetError: the command asks for what cannot be.
        AutocompressError: no trial came to its end.
        InterruptedSearchError: Ctrl-C.
    """
    method = find_method(options.method)
    system = system_of(options.method)
    target = system.parse_target(options.target)
    options.trials = method.trials if options.trials is None else options.trials
    options.space = find_space(options.method, options.space)
    check_output(options.out, (".safetensors",), inputs=(options.weights,))
    settings = search_settings(options)
    for name in ("trial_epochs", "final_epochs"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise InvalidInputError(f"--{name.replace('_', '-')} is {value}, but must be at least 1")
    make_searcher(options.method, options.pruner, settings)
    task = load_task(options.model, options.data, device=options.device, seed=options.seed)
    options.target = str(target)
    options.final_epochs = options.final_epochs or task.recipe.compress_epochs
    options.trial_epochs = options.trial_epochs or max(1, options.final_epochs // TRIALS_PER_FINAL)
    return _search(options, task, target, system, settings)


def _search(options: Namespace, task: Task, target: Target, system: System, settings: SearchSettings) -> str:
    """Returns the answer of a command that has been checked."""
    choices: dict[str, Any] = {
        "target": target,
        "space": options.space,
        "device": options.device,
        "ignore": tuple(options.ignore),
    }
    model = task.make_model()
    system.check_target(Network(model, select(model, tuple(options.ignore))), target, options.space)
    model = starting_network(
        task, options.weights, seed=options.seed, device=options.device, progress=not options.no_progress
    )
    outcome = search(
        options.method,
        task,
        model,
        settings=settings,
        trial_epochs=options.trial_epochs,
        pruner=options.pruner,
        code=(options.model, options.data),
        **choices,
    )
    records = write_records(options, outcome)
    if outcome.interrupted:
        raise InterruptedSearchError(_how_to_go_on(options, outcome, records))
    best = best_of(outcome)
    checkpoint = checkpoint_of(options, best, options.final_epochs)
    try:
        result = train_best(
            options.method,
            task,
            model,
            best,
            epochs=options.final_epochs,
            seed=options.seed,
            checkpoint=checkpoint,
            progress=not options.no_progress,
            **choices,
        )
    except KeyboardInterrupt:
        raise InterruptedSearchError(
            f"interrupted in the final training; the search is done, its records are in {records}\n"
            f"to train its best plan: {_resuming(options)}"
        ) from None
    save_or_keep(result.save, options.out)
    checkpoint.unlink(missing_ok=True)
    if options.json:
        return to_json(result.to_json() | search_json(options, outcome) | {"out": str(options.out)})
    return search_text(options, outcome, result)


def search_settings(options: Namespace) -> SearchSettings:
    """Returns the settings of a search, kept beside the file it writes unless another place is named.

    Raises:
        InvalidInputError: there already is a search, and it is not to be resumed.
    """
    storage = options.storage
    if storage is None:
        # Imported here, once it is known that Optuna is installed.
        from baselines.optuna_search.storage import database_url

        folder = find_method(options.method).uses_ray
        path = beside(options.out, ".search" if folder else ".search.db")
        if path.exists() and not options.resume:
            raise InvalidInputError(
                f"{str(path)!r} holds a search already; go on with it by --resume, delete it, or give another --out"
            )
        storage = str(path) if folder else database_url(path)
    return SearchSettings(
        trials=options.trials,
        seed=options.seed,
        storage=storage,
        resume=options.resume,
        workers=options.workers,
        ray_address=options.ray_address,
        cpus_per_trial=options.cpus_per_trial,
        gpus_per_trial=options.gpus_per_trial,
        max_gradient_steps=options.max_steps,
        max_seconds=options.max_seconds,
        progress=not options.no_progress,
    )


def _how_to_go_on(options: Namespace, outcome: SearchOutcome, records: Path) -> str:
    """Returns what to say after Ctrl-C in the search."""
    done = f"interrupted after {len(outcome.trials)} of {options.trials} trials"
    best = outcome.best
    if best is not None:
        done += f"; the best so far is trial {best.number}, validation accuracy {percent(best.accuracy)}"
    return f"{done}\nrecords and the best plan: {records}\nto go on: {_resuming(options)}"


def _resuming(options: Namespace) -> str:
    """Returns the command that goes on with the search."""
    resume = [] if options.resume else ["--resume"]
    return shlex.join(["python", "-m", "baselines", *options.arguments, *resume])
