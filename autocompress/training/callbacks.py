"""What the trainer calls while it trains."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from autocompress.training.trainer import Trainer


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
        """Takes back what `state_dict` returned."""


class Callback:
    """A `TrainerCallback` that does nothing: override what is wanted."""

    def on_step(self, trainer: Trainer) -> None:
        """Does nothing."""

    def on_epoch_end(self, trainer: Trainer) -> None:
        """Does nothing."""

    def state_dict(self) -> dict[str, Any]:
        """Returns an empty state."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Does nothing."""
