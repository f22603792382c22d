"""The one training loop: it takes callbacks and knows nothing of compression."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.codec.atomic_write import remove_leftovers
from autocompress.errors import MAX_SEED, TrainingDivergedError, whole_number
from autocompress.network.live_network import dense_gradients
from autocompress.training.batches import (
    autocast,
    blaming,
    check_batches,
    default_device,
    forward,
    holds_no_example,
    to_device,
    uses_bfloat16,
)
from autocompress.training.checkpoint import (
    OpenEpoch,
    TrainerCallback,
    TrainingLog,
    begin_epoch,
    check_run_state,
    load_checkpoint,
    restore_run,
    run_state,
    save_checkpoint,
)
from autocompress.training.checks import takes_bfloat16
from autocompress.training.layer_statistics import forward_in_training
from autocompress.training.losses import (
    Distillation,
    OutputDistillation,
    TeacherOutputs,
    carried_loss,
    classification_loss,
)
from autocompress.training.progress import Progress
from autocompress.training.random_state import seed_data_order, seeded, set_epoch
from autocompress.training.ranks import ranks_of
from autocompress.training.recipe import MAX_GRADIENT_NORM, Recipe, find_learning_rate, make_optimizer, make_scheduler

logger = logging.getLogger(__name__)

# Reading a loss waits for the device: on a GPU NaN is looked for once in so many steps (the step it names is exact).
_STEPS_BETWEEN_CHECKS = 16
# A long epoch is not lost for being under way.
SECONDS_BETWEEN_CHECKPOINTS = 300.0


class Trainer:
    """Trains a model for a number of epochs: warm-up, cosine, autocast, checkpoints with exact resume.

    Attributes:
        model: the network, on the run's device.
        optimizer: made at construction, so that a callback may hold it.
        scheduler: moved on after each step.
        total_steps: optimizer steps of the whole run.
        step: optimizer steps done.
        epoch: epochs done.
        open_epoch: the one that is under way, else None.
        teacher_outputs: the teacher's outputs.
        callbacks: called in order; may be appended to before `fit`.
        scalars: what was measured last, by name: loss and learning rate, and what callbacks add.
    """

    def __init__(
        self,
        model: nn.Module,
        train: Iterable[Any],
        *,
        recipe: Recipe,
        epochs: int,
        loss: Callable[[Any, Tensor], Tensor] = classification_loss,
        device: torch.device | str | None = None,
        precision: str = "auto",
        seed: int = 0,
        distillation: Distillation | OutputDistillation | None = None,
        callbacks: Sequence[TrainerCallback] = (),
        checkpoint: Path | None = None,
        state: dict[str, Any] | None = None,
        progress: bool = True,
    ) -> None:
        """Prepares the run; where the recipe has no learning rate it is found here, on a copy of the model.

        Args:
            model: the network; trained in place.
            train: batches to go through once per epoch.
            recipe: optimizer and schedule.
            epochs: length of the run.
            loss: (output, target) -> scalar.
            device: default: CUDA where there is one.
            precision: "auto" (bfloat16 where the hardware has it, and network and loss take it), "fp32" or "bf16".
            seed: of every random number of the run, a loader's own generator included; the caller's others are left as
                they were.
            distillation: a network to learn from beside the targets, and how much.
            callbacks: see `callbacks.TrainerCallback`.
            checkpoint: file to resume from where it exists; rewritten after each epoch, and every few minutes in one.
            state: of `checkpoint.run_state`, to resume from where there is no checkpoint.
            progress: a bar in a terminal or notebook, elsewhere a line now and then.

        Raises:
            InvalidInputError: no batches, no epochs, nothing to train, or a checkpoint of another run.
        """
        epochs, seed = whole_number("epochs", epochs, 1), whole_number("seed", seed, 0, MAX_SEED)
        self.train_batches, self.epochs, self.loss, self.recipe = train, epochs, loss, recipe
        self.steps_per_epoch = check_batches(train, "the training data")
        self.total_steps = epochs * self.steps_per_epoch
        self.device = default_device(device)
        self.bfloat16, self.ranks = uses_bfloat16(precision, self.device), ranks_of(model)
        self.seed, self.progress, self.checkpoint = seed, progress and self.ranks.is_first, checkpoint
        # Convolutions are 1.1 to 1.9 times faster with the channels last in memory, on CPUs as well.
        convolves = any(isinstance(module, nn.Conv2d) for module in model.modules())
        self.memory_format = torch.channels_last if convolves else None
        self.model = model.to(self.device)
        if self.bfloat16 and precision == "auto":
            self.bfloat16 = self.ranks.from_first(
                lambda: takes_bfloat16(model, train, loss=loss, device=self.device, seed=seed)
            )
        self.distillation = distillation
        self.teacher_outputs = TeacherOutputs(self._teach, self.device)
        if distillation is not None:
            distillation.teacher.to(self.device).eval()
            if self.memory_format is not None:
                lay_out(distillation.teacher, self.memory_format)
        self.callbacks: list[TrainerCallback] = list(callbacks)
        self.step, self.epoch, self.log = 0, 0, TrainingLog()
        self.scalars: dict[str, float] = {}
        self.open_epoch: OpenEpoch | None = None
        self._saved = state if checkpoint is None else self.ranks.from_first(lambda: _read(checkpoint)) or state
        self.learning_rate = self.ranks.from_first(self._peak_learning_rate)
        self.optimizer = make_optimizer(self.model, recipe, self.learning_rate)
        self.scheduler = make_scheduler(self.optimizer, self.total_steps, recipe.warmup_fraction)

    def fit(self) -> TrainingLog:
        """Trains to the end, from the checkpoint where there is one; returns what was done.

        Raises:
            TrainingDivergedError: the loss became NaN or infinite; the last checkpoint stays.
        """
        if self.memory_format is not None:
            lay_out(self.model, self.memory_format)
        try:
            with seeded(self.seed):
                seed_data_order(self.train_batches, self.seed)
                if self._saved is not None:
                    restore_run(self, self._saved)
                with Progress(self.total_steps, "training", done=self.step, shown=self.progress) as bar:
                    while self.epoch < self.epochs:
                        self._run_epoch(bar)
                set_epoch(self.train_batches, self.epochs)  # the same next order, whether the run was resumed or not
        finally:
            if self.memory_format is not None:
                lay_out(self.model, torch.contiguous_format)
        return self.log

    def _run_epoch(self, bar: Progress) -> None:
        started = saved = time.perf_counter()
        bar.describe(f"epoch {self.epoch + 1}/{self.epochs}")
        set_epoch(self.train_batches, self.epoch)
        self.model.train()
        self.open_epoch, batches = begin_epoch(self)
        losses = self.open_epoch.losses
        for batch in batches:
            losses.append(self._train_step(batch))
            interval = 1 if self.device.type == "cpu" else _STEPS_BETWEEN_CHECKS
            if len(losses) % interval == 0:
                self._check_finite(losses[-interval:])
                self.scalars["loss"] = float(losses[-1])
            self.scalars["learning_rate"] = self.optimizer.param_groups[0]["lr"]
            for callback in self.callbacks:
                callback.on_step(self)
            self.optimizer.zero_grad(set_to_none=True)
            self.scheduler.step()
            bar.update(f"loss {self.scalars['loss']:.4f}" if "loss" in self.scalars else "")
            now = time.perf_counter()
            if self.checkpoint is not None and self._is_due(now - saved):
                self._check_finite(losses)
                self.log.wall_seconds, started, saved = self.log.wall_seconds + now - started, now, now
                self._save_checkpoint()
        self._check_finite(losses)
        self.epoch, self.open_epoch = self.epoch + 1, None
        self.scalars["epoch_loss"] = float(torch.stack(losses).mean())
        for callback in self.callbacks:
            callback.on_epoch_end(self)
        self.log.losses.append(self.scalars["epoch_loss"])
        self.log.gradient_steps = self.step
        self.log.wall_seconds += time.perf_counter() - started
        bar.end_epoch(f"epoch {self.epoch}/{self.epochs}: loss {self.log.losses[-1]:.4f}")
        self._save_checkpoint()

    def _save_checkpoint(self) -> None:
        if self.checkpoint is None:
            return
        if self.ranks.is_first:
            save_checkpoint(self.checkpoint, run_state(self))
        for callback in self.callbacks:
            getattr(callback, "on_checkpoint", lambda trainer: None)(self)

    def _is_due(self, seconds: float) -> bool:
        """Tells, the same on all ranks, whether so long after the last one a checkpoint is to be written."""
        if self.ranks.size == 1:
            return seconds >= SECONDS_BETWEEN_CHECKPOINTS
        asked = self.step % _STEPS_BETWEEN_CHECKS == 0
        return asked and self.ranks.from_first(lambda: seconds >= SECONDS_BETWEEN_CHECKPOINTS)

    def _train_step(self, batch: Any) -> Tensor:
        """Returns the loss of one optimizer step, a detached scalar; the gradients are still there."""
        with blaming(f"the batch of step {self.step + 1}", batch):
            if holds_no_example(batch):
                raise ValueError("it holds no example")
            batch = to_device(batch, self.device, self.memory_format)
            with autocast(self.bfloat16, self.device):
                output, target = forward_in_training(self.model, batch, with_target=self.loss is carried_loss)
            value = self.loss(output, target)
            if self.distillation is not None:
                value = self.distillation.loss(output, self.teacher_outputs(batch, again=self.epoch > 0), value, target)
            value.backward()  # type: ignore[no-untyped-call]
        dense_gradients(self.model.parameters())
        nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRADIENT_NORM)
        self.optimizer.step()
        self.step += 1
        return value.detach()

    def _teach(self, batch: Any) -> Any:
        """Returns the teacher's outputs for a batch."""
        assert self.distillation is not None
        with torch.no_grad(), autocast(self.bfloat16, self.device):
            return forward(self.distillation.teacher, batch)[0]

    def _check_finite(self, losses: list[Tensor]) -> None:
        bad = (~torch.isfinite(torch.stack(losses))).nonzero()
        if len(bad) == 0:
            return
        first = int(bad[0, 0])
        raise TrainingDivergedError(
            f"the training loss became {float(losses[first])} in step {self.step - len(losses) + 1 + first} of "
            f"{self.total_steps}, at a peak learning rate of {self.learning_rate:g}; lower the learning rate, and "
            "check the inputs for NaN"
        )

    def _peak_learning_rate(self) -> float:
        if self.recipe.learning_rate is not None:
            return self.recipe.learning_rate
        if self._saved is not None:
            return float(self._saved["learning_rate"])
        set_epoch(self.train_batches, 0)  # the same rate, whatever was trained on these batches before
        with seeded(self.seed):
            seed_data_order(self.train_batches, self.seed)
            return find_learning_rate(
                self.model,
                self.train_batches,
                recipe=self.recipe,
                loss=self.loss,
                device=self.device,
                bfloat16=self.bfloat16,
                progress=self.progress,
            )


def _read(checkpoint: Path) -> dict[str, Any] | None:
    """Returns a checkpoint, None where there is none yet; what a killed run left half-written is removed."""
    remove_leftovers(checkpoint)
    if not checkpoint.exists():
        return None
    state = load_checkpoint(checkpoint)
    check_run_state(state, checkpoint)
    return state


@torch.no_grad()
def lay_out(model: nn.Module, memory_format: torch.memory_format) -> None:
    """Puts the parameters of four dimensions into a memory format; torch's own `to` refuses a network with others."""
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=memory_format)
