"""All that a training run is made of, into a checkpoint and back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from autocompress.errors import InvalidInputError
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


def run_state(trainer: Trainer) -> dict[str, Any]:
    """Returns the state of a run at the end of an epoch: tensors, numbers, strings and containers of them."""
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
