"""All that a training run is made of, into a checkpoint and back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from autocompress.errors import InvalidInputError
from autocompress.training.batches import batches_of_epoch
from autocompress.training.random_state import (
    data_order_state,
    random_states,
    restore_data_order,
    restore_random_states,
)

if TYPE_CHECKING:
    from autocompress.training.trainer import Trainer


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
        "random": random_states(),
        "data_order": data_order_state(trainer.train_batches),
        "log": vars(trainer.log),
        "learning_rate": trainer.learning_rate,
        "total_steps": trainer.total_steps,
        "step": trainer.step,
        "epoch": trainer.epoch,
        "within": None if within is None else vars(within) | {"losses": torch.stack(within.losses).cpu()},
    }


def restore_run(trainer: Trainer, saved: dict[str, Any]) -> None:
    """Takes up a run where its checkpoint left it.

    Raises:
        InvalidInputError: the checkpoint is of a run of another length, of other callbacks or of another network.
    """
    if saved["total_steps"] != trainer.total_steps or len(saved["callbacks"]) != len(trainer.callbacks):
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
