"""What runs in a Ray actor: one evaluation after another, reported epoch by epoch."""

from __future__ import annotations

import base64
import json
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune

from baselines.interface import Objective, Progress

STATE_FILE = "state.pt"
_objectives: dict[str, Objective] = {}


@dataclass(frozen=True)
class Checkpoints:
    """When the state of a trial is kept: after each so many epochs, but not sooner than so many seconds after the last.

    Attributes:
        epochs: 0 = never.
        seconds: between two.
    """

    epochs: int = 0
    seconds: float = 0.0


def trainable(
    reference: ray.ObjectRef[Any], threads: int, checkpoints: Checkpoints
) -> Callable[[dict[str, Any]], None]:
    """Returns the function that Ray Tune calls with each proposal, in an actor that goes on living after it.

    Args:
        reference: the objective in the object store. Ray copies it once to each node, an actor reads it once.
        threads: of torch in one trial.
        checkpoints: when the state is kept.
    """

    def evaluate_proposal(config: dict[str, Any]) -> None:
        _run(config["proposal"], _objective(reference, threads), checkpoints)

    return evaluate_proposal


def _objective(reference: ray.ObjectRef[Any], threads: int) -> Objective:
    key = reference.hex()
    if key not in _objectives:
        _objectives.clear()
        _objectives[key] = ray.get(reference)
    if "torch" in sys.modules:  # loaded by the objective; one that needs none is not slowed down by the import
        sys.modules["torch"].set_num_threads(threads)
    return _objectives[key]


def _run(proposal: dict[str, Any], objective: Objective, checkpoints: Checkpoints) -> None:
    """Evaluates one proposal.

    Ray Tune ends a trial from within `tune.report`, by a SystemExit that unwinds the training loop: nothing else of
    it would be used. The last epoch is reported with the evaluation, so that no scheduler ends a trial that is done.
    """
    begun = time.perf_counter()
    state = _kept_state(proposal)
    common = {
        "part": uuid.uuid4().hex,
        "from_scratch": state is None,
        "node": ray.get_runtime_context().get_node_id(),
        "evaluation": "",
    }
    kept = time.perf_counter()
    own_seconds = kept - begun

    def report(progress: Progress) -> bool:
        nonlocal own_seconds, kept
        begun = time.perf_counter()
        if progress.epoch >= objective.epochs:
            return False
        metrics = common | _metrics(progress.epoch, progress)
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = None
            due = checkpoints.epochs and progress.epoch % checkpoints.epochs == 0
            if due and begun - kept >= checkpoints.seconds:
                checkpoint, kept = _checkpoint(Path(folder), progress), begun
            own_seconds += time.perf_counter() - begun
            tune.report(metrics | {"own_seconds": own_seconds}, checkpoint=checkpoint)
        return False

    evaluation = objective(proposal["values"], report, state)
    begun = time.perf_counter()
    told = asdict(evaluation) | {"file": base64.b64encode(evaluation.file).decode()}
    metrics = common | _metrics(objective.epochs, evaluation) | {"evaluation": json.dumps(told)}
    own_seconds += time.perf_counter() - begun
    tune.report(metrics | {"own_seconds": own_seconds, "done": True})


def _metrics(epoch: int, costs: Any) -> dict[str, Any]:
    """Returns what a `Progress` and an `Evaluation` both tell."""
    return {
        "epoch": epoch,
        "accuracy": float(costs.accuracy),
        "loss": None if costs.loss is None else float(costs.loss),
        "score": float(costs.score),
        "gradient_steps": int(costs.gradient_steps),
        "device_seconds": float(costs.device_seconds),
    }


def _checkpoint(folder: Path, progress: Progress) -> tune.Checkpoint:
    import torch

    torch.save(progress.state(), folder / STATE_FILE)
    return tune.Checkpoint(str(folder))


def _kept_state(proposal: dict[str, Any]) -> dict[str, Any] | None:
    """Returns the state to go on from: of this search, else of the one that is resumed, else None."""
    checkpoint = tune.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            return _load(Path(folder))
    kept = proposal.get("checkpoint")
    return _load(Path(kept)) if kept and (Path(kept) / STATE_FILE).exists() else None


def _load(folder: Path) -> dict[str, Any]:
    import torch

    state: dict[str, Any] = torch.load(folder / STATE_FILE, map_location="cpu", weights_only=True)
    return state
