"""The L-C solver on a network and its data: L steps of SGD by a schedule, C steps between, the best theta kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.constraints.constraint import Network
from autocompress.errors import InvalidInputError, TrainingDivergedError
from autocompress.training.batches import autocast, check_batches, to_device, uses_bfloat16
from autocompress.training.checkpoint import load_checkpoint, save_checkpoint
from autocompress.training.layer_statistics import forward_in_training
from autocompress.training.random_state import seeded, set_epoch
from autocompress.training.recipe import MAX_GRADIENT_NORM
from baselines.condensa.learn_compress import LearnCompress
from baselines.condensa.schedule import Schedule
from baselines.condensa.schemes import Scheme

LossFunction = Callable[[Any, Tensor], Tensor]


class Solver:
    """Trains a network under a scheme.

    Attributes:
        steps: gradient steps done.
        l_step: L steps done.
        best_loss: lowest validation loss of a network delta(theta), the direct compression included.
        curve: (gradient steps, mean training loss) after each L step.
    """

    def __init__(
        self,
        network: Network,
        scheme: Scheme,
        schedule: Schedule,
        total_steps: int,
        *,
        train: Iterable[Any],
        loss: LossFunction,
        validation_loss: Callable[[nn.Module], float],
        device: torch.device,
        seed: int,
        biases: bool = False,
    ) -> None:
        """Compresses the network directly.

        Args:
            network: what is trained, in place, on its device.
            scheme: what compressing is.
            schedule: fitted into the steps.
            total_steps: gradient steps in all.
            train: batches; gone through from epoch to epoch as the trainer does.
            loss: (output, target) -> scalar.
            validation_loss: decides which theta is the best.
            device: of the network.
            seed: of the random numbers of the training.
            biases: whether the scheme is given the biases of the weights' layers as well.

        Raises:
            InvalidInputError: no steps or no batches.
        """
        self.network, self.train, self.loss, self.validation_loss = network, train, loss, validation_loss
        self.device, self.seed = device, seed
        self.bfloat16 = uses_bfloat16("auto", device)
        self.steps_per_epoch = check_batches(train, "the training data")
        self.schedule, self.lengths = schedule.within(total_steps)
        self.parameters = dict(network.selection.weights)
        if biases:
            owners = {name.removesuffix("weight") for name in self.parameters}
            vectors = network.selection.vectors
            self.parameters |= {name: bias for name, bias in vectors if name.removesuffix("bias") in owners}
        self.trained: list[Tensor] = [p for p in network.model.parameters() if p.requires_grad]
        self.state = LearnCompress(self.parameters, scheme, self.schedule.mu, self.schedule.mu_factor)
        self.steps, self.l_step = 0, 0
        self.curve: list[tuple[int, float]] = []
        self.best_loss = float("inf")
        self._keep_best()

    def fit(self, after: Callable[[], None] = lambda: None, checkpoint: Path | None = None) -> None:
        """Takes all steps that are left, then puts the best theta, and what belongs to it, into the network.

        Args:
            after: called after each C step.
            checkpoint: file to go on from where it exists; rewritten after each C step.

        Raises:
            TrainingDivergedError: the loss became NaN or infinite.
        """
        if checkpoint is not None and checkpoint.exists():
            self.load_state_dict(load_checkpoint(checkpoint))
        while self.l_step < len(self.lengths):
            with seeded(self.seed + self.l_step):  # a run that goes on from here draws what it would have drawn
                self._learn(self.lengths[self.l_step])
            self.state.compress()
            self.l_step += 1
            self._keep_best()
            after()
            if checkpoint is not None:
                save_checkpoint(checkpoint, self.state_dict())
        self.network.model.load_state_dict(self.best, strict=False)  # what is no tensor was left out

    def _learn(self, steps: int) -> None:
        """Takes an L step: SGD with Nesterov's momentum, v <- m v - lr g, w <- w + m v - lr g, from rest."""
        self.network.model.train()
        velocities = [torch.zeros_like(p) for p in self.trained]
        losses = []
        batches = batches_from(self.train, self.steps, self.steps_per_epoch)
        for rate, batch in zip(self.schedule.rates(self.l_step, steps), batches, strict=False):
            losses.append(self.gradient_step(batch))
            self.state.penalize()
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.trained]
            with torch.no_grad():
                torch._foreach_mul_(velocities, self.schedule.momentum)
                torch._foreach_add_(velocities, gradients, alpha=-rate)
                torch._foreach_add_(self.trained, velocities, alpha=self.schedule.momentum)
                torch._foreach_add_(self.trained, gradients, alpha=-rate)
            self.steps += 1
        mean = float(torch.stack(losses).mean())
        if not torch.isfinite(torch.tensor(mean)):
            raise TrainingDivergedError(f"the training loss became {mean} by step {self.steps}, in an L step")
        self.curve.append((self.steps, mean))

    def gradient_step(self, batch: Any) -> Tensor:
        """Returns the loss of a batch, detached; leaves its gradients, no longer than the trainer lets them be."""
        self.network.model.zero_grad(set_to_none=True)
        batch = to_device(batch, self.device)
        with autocast(self.bfloat16, self.device):
            output, target = forward_in_training(self.network.model, batch)
        value = self.loss(output, target)
        value.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.trained, MAX_GRADIENT_NORM)
        return value.detach()

    @torch.no_grad()
    def _keep_best(self) -> None:
        """Notes the compressed network where its validation loss is the lowest so far."""
        own = {name: weight.detach().clone() for name, weight in self.parameters.items()}
        for name, weight in self.parameters.items():
            weight.copy_(self.state.decompressed[name])
        loss = self.validation_loss(self.network.model)
        if loss < self.best_loss or self.best_loss == float("inf"):
            self.best_loss = loss
            state = self.network.model.state_dict()
            self.best = {name: value.clone() for name, value in state.items() if isinstance(value, Tensor)}
        for name, weight in self.parameters.items():
            weight.copy_(own[name])

    def state_dict(self) -> dict[str, Any]:
        """Returns all that is needed to go on after a C step; the momentum begins anew there."""
        return {
            "steps": self.steps,
            "l_step": self.l_step,
            "lengths": self.lengths,
            "curve": self.curve,
            "best_loss": self.best_loss,
            "best": self.best,
            "model": self.network.model.state_dict(),
            "state": self.state.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from what `state_dict` returned.

        Raises:
            InvalidInputError: it is of a run of another length.
        """
        if state["lengths"] != self.lengths:
            raise InvalidInputError(f"the saved run has L steps of {state['lengths']}, this one of {self.lengths}")
        self.steps, self.l_step, self.best_loss = state["steps"], state["l_step"], state["best_loss"]
        self.curve, self.best = [(int(steps), float(loss)) for steps, loss in state["curve"]], state["best"]
        self.network.model.load_state_dict(state["model"])
        self.state.load_state_dict(state["state"])


def batches_from(train: Iterable[Any], step: int, steps_per_epoch: int) -> Iterator[Any]:
    """Returns the batches of the epochs without end, from those of a step on."""
    epoch, skipped = divmod(step, steps_per_epoch)
    while True:
        set_epoch(train, epoch)
        for number, batch in enumerate(train):
            if number >= skipped:
                yield batch
        epoch, skipped = epoch + 1, 0
