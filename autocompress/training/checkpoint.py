"""Checkpoints: written whole or not at all, read without unpickling code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from autocompress.codec.atomic_write import replacing
from autocompress.errors import AutocompressError, InvalidInputError

if TYPE_CHECKING:
    from autocompress.training.trainer import Trainer
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from autocompress.training.batches import batches_of_epoch
from autocompress.training.random_state import (
    data_order_state,
    random_states,
    restore_data_order,
    restore_random_states,
)

# In the folder of `compress(resume=)`.
CHECKPOINT_NAME = "compress.checkpoint"


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes `state` to a temporary file beside `path`, then renames it: a kill leaves the old file or the new one.

    The first one is read back, because a checkpoint that cannot be read is found out when it is needed.

    Raises:
        AutocompressError: the folder is read-only or full.
        InvalidInputError: the state holds what cannot be read without unpickling code; it is named.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            with temporary.open("wb") as file:
                torch.save(state, file)
            if not path.exists():
                _read_back(temporary, path, state)
    except (OSError, RuntimeError) as error:  # torch's zip writer turns a full disk into a RuntimeError
        raise AutocompressError(f"cannot write the checkpoint {path}: {error}") from error


def _read_back(temporary: Path, path: Path, state: dict[str, Any]) -> None:
    try:
        load_checkpoint(temporary)
    except InvalidInputError as error:
        raise InvalidInputError(
            f"the checkpoint {path} could never be read: {_first_unreadable(state) or error}; use numbers of Python "
            "itself, tensors and containers of them"
        ) from error


def _first_unreadable(value: Any, where: str = "the state") -> str | None:
    """Returns where in a state something lies that is neither a tensor nor plain, and what; None where all is plain."""
    if isinstance(value, Mapping):
        parts = [(f"{where}[{key!r}]", part) for key, part in value.items()]
    elif isinstance(value, list | tuple):
        parts = [(f"{where}[{number}]", part) for number, part in enumerate(value)]
    else:
        plain = value is None or isinstance(value, Tensor) or type(value) in (bool, int, float, str, bytes, complex)
        return None if plain else f"{where} is a {type(value).__module__}.{type(value).__qualname__}"
    return next((found for part in parts if (found := _first_unreadable(part[1], part[0]))), None)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Returns what `save_checkpoint` wrote, its tensors on the CPU (where generator states must lie).

    Raises:
        InvalidInputError: the file is no checkpoint, or is damaged.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load takes any bytes for a pickle, and ends in any error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InvalidInputError(f"{path} is not a readable checkpoint ({reason}); delete it to start anew") from error
    if not isinstance(state, dict):
        raise InvalidInputError(f"{path} is not a checkpoint of a run; delete it to start anew")
    return state


class TrainerCallback(Protocol):
    """Something that follows a training run; its state travels in the trainer's checkpoint."""

    def on_step(self, trainer: Trainer) -> None:
        """Is called after each optimizer step, before the gradients are cleared and the learning rate moves on."""

    def on_epoch_end(self, trainer: Trainer) -> None:
        """Is called after the last step of each epoch, before the checkpoint is written."""

    def state_dict(self) -> dict[str, Any]:
        """Returns all that a resumed run needs: tensors, numbers, strings and containers of them."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class Callback:
    """A `TrainerCallback` that does nothing: override what is wanted."""

    def on_checkpoint(self, trainer: Trainer) -> None:
        """Is called after a checkpoint was written by the first rank, on all ranks at the same step."""

    def on_step(self, trainer: Trainer) -> None:
        pass

    def on_epoch_end(self, trainer: Trainer) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


@dataclass
class TrainingLog:
    """What a training run did, what came before a resume included.

    Attributes:
        losses: mean training loss of each epoch.
        gradient_steps: optimizer steps.
        wall_seconds: time spent training.
    """

    losses: list[float] = field(default_factory=list)
    gradient_steps: int = 0
    wall_seconds: float = 0.0

    @property
    def curve(self) -> list[tuple[int, float]]:
        """(optimizer steps, mean training loss) after each epoch; every epoch has as many steps."""
        per_epoch = self.gradient_steps // max(len(self.losses), 1)
        return [(per_epoch * (number + 1), loss) for number, loss in enumerate(self.losses)]


@dataclass
class OpenEpoch:
    """An epoch that is under way.

    Attributes:
        random: the states of all generators at its start, of which its order of the data follows.
        data_order: the same of the loader's own generators.
        losses: of the steps done in it, scalars on the device of the run.
    """

    random: dict[str, Any]
    data_order: list[Tensor]
    losses: list[Tensor] = field(default_factory=list)


def run_state(trainer: Trainer) -> dict[str, Any]:
    """Returns the state of a run between two steps: tensors, numbers, strings and containers of them."""
    within = trainer.open_epoch
    return {
        "model": trainer.model.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "scheduler": trainer.scheduler.state_dict(),
        "callbacks": [callback.state_dict() for callback in trainer.callbacks],
        "taught": trainer.teacher_outputs.state_dict(),
        "random": random_states(),
        "data_order": data_order_state(trainer.train_batches),
        "log": vars(trainer.log),
        "learning_rate": trainer.learning_rate,
        "total_steps": trainer.total_steps,
        "step": trainer.step,
        "epoch": trainer.epoch,
        "within": None if within is None else vars(within) | {"losses": torch.stack(within.losses).cpu()},
    }


# What every version has written.
_PARTS = {"model", "optimizer", "scheduler", "callbacks", "random", "data_order", "log", "total_steps", "step", "epoch"}


def check_run_state(state: dict[str, Any], path: Path | None) -> None:
    """Checks that what was read from a file is the state of a run.

    Raises:
        InvalidInputError: it is of something else.
    """
    if not state.keys() >= _PARTS:
        raise InvalidInputError(f"{path} is not a checkpoint of a run; delete it to start anew")


def restore_run(trainer: Trainer, saved: dict[str, Any]) -> None:
    """Takes up a run where its checkpoint left it.

    Raises:
        InvalidInputError: the checkpoint is of a run of another length, of other callbacks or of another network.
    """
    check_run_state(saved, trainer.checkpoint)
    if len(saved["callbacks"]) != len(trainer.callbacks):
        raise InvalidInputError(
            f"the checkpoint {trainer.checkpoint} is of a run with {len(saved['callbacks'])} callbacks, this one has "
            f"{len(trainer.callbacks)}; resume with the same, or choose another place"
        )
    if saved["total_steps"] != trainer.total_steps:
        raise InvalidInputError(
            f"the checkpoint {trainer.checkpoint} is of another run: {saved['total_steps']} steps where this one has "
            f"{trainer.total_steps}; resume with the same data and epochs, or choose another place"
        )
    try:
        trainer.model.load_state_dict(saved["model"])
        trainer.optimizer.load_state_dict(saved["optimizer"])
    except (RuntimeError, ValueError, KeyError) as error:
        raise InvalidInputError(f"the checkpoint {trainer.checkpoint} is of another network: {error}") from error
    trainer.scheduler.load_state_dict(saved["scheduler"])
    for callback, state in zip(trainer.callbacks, saved["callbacks"], strict=True):
        callback.load_state_dict(state)
    if "taught" in saved:  # not in what an earlier version wrote
        trainer.teacher_outputs.load_state_dict(saved["taught"])
    restore_random_states(saved["random"])
    restore_data_order(trainer.train_batches, saved["data_order"])
    trainer.log = TrainingLog(**saved["log"])
    trainer.step, trainer.epoch = saved["step"], saved["epoch"]
    if saved.get("within") is not None:
        within = saved["within"]
        trainer.open_epoch = OpenEpoch(
            within["random"], within["data_order"], list(within["losses"].to(trainer.device))
        )


def begin_epoch(trainer: Trainer) -> tuple[OpenEpoch, Iterator[Any]]:
    """Returns the epoch that is begun or gone on with, and its batches that are left.

    Of one that was broken off the batches that are done are drawn once more, in the order of its start, and left out;
    then all generators go on from where they were.
    """
    now, batches = random_states(), batches_of_epoch(trainer.train_batches, trainer.steps_per_epoch)
    if trainer.open_epoch is None:
        return OpenEpoch(now, data_order_state(trainer.train_batches)), batches
    restore_random_states(trainer.open_epoch.random)
    restore_data_order(trainer.train_batches, trainer.open_epoch.data_order)
    for _ in trainer.open_epoch.losses:
        next(batches)
    restore_random_states(now)
    return trainer.open_epoch, batches
