"""The figures of a run in TensorBoard, MLflow, or whatever else takes numbers by name and step."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autocompress.errors import AutocompressError
from autocompress.training.checkpoint import Callback

if TYPE_CHECKING:
    from autocompress.training.trainer import Trainer


class LogScalars(Callback):
    """Hands the figures of a run on while it lasts: `compress(..., callbacks=[LogScalars(mlflow.log_metrics)])`.

    Loss, learning rate, nonzeros, multiplier, residual and (where it is limited) bytes after every projection;
    `epoch_loss` and, where they were measured, `validation_loss` and `validation_score` after every epoch.
    """

    def __init__(self, log: Callable[..., Any], *, every_steps: int = 10) -> None:
        """Takes `log(figures, step=step)`, the form of `mlflow.log_metrics`; called every so many steps."""
        self.log, self.every_steps = log, every_steps

    def on_step(self, trainer: Trainer) -> None:
        """Logs what changes by the step."""
        if trainer.step % self.every_steps == 0:
            of_epochs = ("epoch_loss", "validation_loss", "validation_score", "step")
            self._log({name: value for name, value in trainer.scalars.items() if name not in of_epochs}, trainer)

    def on_epoch_end(self, trainer: Trainer) -> None:
        """Logs all that is known."""
        self._log({name: value for name, value in trainer.scalars.items() if name != "step"}, trainer)

    def _log(self, figures: Mapping[str, float], trainer: Trainer) -> None:
        if trainer.ranks.is_first:
            self.log({name: float(value) for name, value in figures.items()}, step=trainer.step)


class TensorBoard(LogScalars):
    """Writes the figures of a run as scalars of TensorBoard: `compress(..., callbacks=[TensorBoard("runs/first")])`."""

    def __init__(self, writer: Any, *, every_steps: int = 10, prefix: str = "autocompress/") -> None:
        """Takes a `SummaryWriter`, or the folder of a new one.

        Raises:
            AutocompressError: tensorboard is not installed.
        """
        if isinstance(writer, str | Path):
            try:
                module = importlib.import_module("torch.utils.tensorboard")
            except ImportError as error:
                raise AutocompressError('TensorBoard needs its package: pip install "autocompress[report]"') from error
            writer = module.SummaryWriter(str(writer))
        self.writer, self.prefix = writer, prefix
        super().__init__(self._write, every_steps=every_steps)

    def _write(self, figures: Mapping[str, float], *, step: int) -> None:
        for name, value in figures.items():
            self.writer.add_scalar(self.prefix + name, value, step)
        self.writer.flush()
