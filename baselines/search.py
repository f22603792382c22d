"""One function for a search, whoever asks: the command line, a cell of a study, a script."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autocompress.errors import AutocompressError
from autocompress.network.selection import Ignore
from autocompress.solver.result import Result
from autocompress.targets import Target
from autocompress.task import Task
from baselines.interface import Searcher, SearchOutcome, SearchSettings, Trial
from baselines.methods import find_method, find_space
from baselines.ray_search import RaySearcher
from baselines.systems import system_of


def search(
    method: str,
    task: Task,
    reference: nn.Module,
    *,
    target: str | Target | Any,
    settings: SearchSettings | None = None,
    trial_epochs: int,
    space: str | None = None,
    pruner: str | None = None,
    device: str | torch.device | None = None,
    ignore: Ignore = (),
    code: Sequence[str] = (),
) -> SearchOutcome:
    """Returns a search for the plan with which a trained network loses least within a target.

    Args:
        method: one of `baselines.methods.METHODS`.
        task: gives data, loss, metric and recipe; its test split is not looked at.
        reference: the trained network; left as it is.
        target: a size, or for condensa a promise.
        settings: trials, budget, seed, storage, machines; default: as many trials as the method has, seed 0.
        trial_epochs: length of a trial.
        space: that is searched; default: the method's own, or per-layer.
        pruner: that stops trials of an Optuna method.
        device: where trials run; default: CUDA where there is one.
        ignore: globs over parameter or module names, or module types, not to compress.
        code: `package.module:function`s of the user's, whose code a cluster's nodes lack.

    Raises:
        InvalidInputError, InfeasibleTargetError: it asks for what cannot be; before anything is trained.
    """
    found = find_method(method)
    settings = settings or SearchSettings(found.trials)
    searcher = make_searcher(method, pruner, settings, code)
    objective = system_of(method).objective(
        task,
        reference,
        target=target,
        space=find_space(method, space),
        epochs=trial_epochs,
        seed=settings.seed,
        device=device,
        ignore=ignore,
    )
    with _without_epochs():
        return searcher.search(objective, settings)


def make_searcher(method: str, pruner: str | None, settings: SearchSettings, code: Sequence[str] = ()) -> Searcher:
    """Returns the searcher of a method, with these settings checked; the code of `code` travels with it.

    Raises:
        InvalidInputError: naming the value and what would be right.
    """
    searcher = find_method(method).make(pruner)
    searcher.check(settings)
    return searcher.with_modules(*code) if isinstance(searcher, RaySearcher) else searcher


def best_of(outcome: SearchOutcome) -> Trial:
    """Returns the best trial.

    Raises:
        AutocompressError: none came to its end.
    """
    if outcome.best is not None:
        return outcome.best
    last = next((trial.error for trial in reversed(outcome.trials) if trial.error), "all were stopped")
    raise AutocompressError(f"none of {len(outcome.trials)} trials came to its end; the last: {last.strip()}")


def train_best(
    method: str,
    task: Task,
    reference: nn.Module,
    best: Trial,
    *,
    target: str | Target | Any,
    epochs: int,
    space: str | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    ignore: Ignore = (),
    checkpoint: Path | None = None,
    progress: bool = True,
    look_at_test: bool = True,
) -> Result:
    """Returns the best trial's plan trained to its end, or that trial where it is better by validation.

    Args:
        method, task, reference, target, space, seed, device, ignore: as of the search.
        best: trial of it, see `best_of`.
        epochs: of the training: those of the compressor.
        checkpoint: file to resume from where it exists; rewritten after each epoch.
        progress: a bar on stderr, where that is a terminal.
        look_at_test: once, at the end; False leaves that to the caller.
    """
    return system_of(method).train(
        task if look_at_test else replace(task, test=None),
        reference,
        best.values,
        target=target,
        space=find_space(method, space),
        epochs=epochs,
        seed=seed,
        device=device,
        ignore=ignore,
        checkpoint=checkpoint,
        progress=progress,
        trial_file=best.file,
    )


@contextlib.contextmanager
def _without_epochs() -> Iterator[None]:
    """Keeps the trainer's line for each epoch out of the log of a search, which has one for each trial."""
    trainer = logging.getLogger("autocompress.training.progress")
    before = trainer.level
    trainer.setLevel(logging.WARNING)
    try:
        yield
    finally:
        trainer.setLevel(before)
