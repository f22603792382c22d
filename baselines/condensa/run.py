"""One training at one density: L-C, then the compressor's own ending."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from autocompress.constraints.constraint import Network
from autocompress.network.compressed_tensors import CompressedState, QuantizedTensor
from autocompress.network.live_network import copy_network
from autocompress.network.selection import select
from autocompress.numerics.kmeans import encode, fit_codebook, sort_values
from autocompress.solver.fine_tuning import fine_tuning_steps, finished_file, start_fine_tuning
from autocompress.targets import FileSize
from autocompress.training.batches import check_batches, default_device
from autocompress.training.layer_statistics import refit_batch_norm
from autocompress.training.random_state import seeded, set_epoch
from baselines.condensa.schemes import MAX_BITS
from baselines.condensa.solver import Solver, batches_from
from baselines.condensa.space import DENSITY
from baselines.fitting import FileBudget
from baselines.interface import Values
from baselines.objective import on_device

if TYPE_CHECKING:
    from baselines.condensa.objective import CondensaObjective


class CondensaRun:
    """One training of the reference at one density.

    Attributes:
        network: what is trained.
        solver: of the first part, nine tenths of the steps.
        steps: gradient steps done.
    """

    def __init__(self, objective: CondensaObjective, values: Values, epochs: int, target: FileSize) -> None:
        where = default_device(objective.device)
        model = copy_network(objective.reference, device=where)
        objective.train = on_device(objective.train, where)
        self.objective, self.epochs, self.target = objective, epochs, target
        self.network = Network(model, select(model, objective.ignore))
        self.total_steps = epochs * check_batches(objective.train, "the training data")
        self.solver = Solver(
            self.network,
            objective.scheme(values[DENSITY]),
            objective.schedule,
            max(1, self.total_steps - fine_tuning_steps(self.total_steps)),
            train=objective.train,
            loss=objective.loss,
            validation_loss=lambda network: objective.scores(network).loss,
            device=where,
            seed=objective.seed,
        )
        self.steps = 0

    def fit(self, after: Callable[[], None] = lambda: None, checkpoint: Path | None = None) -> None:
        """Solves, then trains the values of the best theta with its codes fixed, as every method here ends."""
        self.solver.fit(after, checkpoint)
        self.steps = self.solver.steps
        quantized = [_quantized(weight.detach().float()) for weight in self.network.weights]
        _, self.writer = FileBudget(self.network, self.target).measure(quantized)
        left = self.total_steps - self.steps
        self.finishing = start_fine_tuning(self.network, quantized, self.writer, left)
        self.network.model.train()
        with seeded(self.objective.seed):
            batches = batches_from(self.objective.train, self.steps, self.solver.steps_per_epoch)
            for _, batch in zip(range(left), batches, strict=False):
                self.solver.gradient_step(batch)
                self.finishing.step()
                self.steps += 1
        set_epoch(self.objective.train, self.epochs)

    def compressed(self) -> nn.Module:
        """Returns a copy of the network as the last C step compressed it."""
        network = copy_network(self.network.model)
        with torch.no_grad():
            # A tied weight has one name here, two in a state_dict.
            for name, tensor in self.solver.state.decompressed.items():
                network.get_parameter(name).copy_(tensor)
        return network

    def finish(self) -> tuple[CompressedState, bytes]:
        """Returns the network as it is now and its file, within the target; refits batch norm to it first."""
        with seeded(self.objective.seed):
            refit_batch_norm(self.network.model, self.objective.train, device=self.solver.device)
        return finished_file(self.network, self.finishing, self.writer)


def _quantized(weight: torch.Tensor) -> QuantizedTensor:
    """Returns a layer of delta(theta) as the file holds it; more than 256 values are fitted to as many."""
    mask = weight != 0
    if not bool(mask.any()):
        return QuantizedTensor(torch.zeros(weight.shape, dtype=torch.int16, device=weight.device), weight.new_zeros(0))
    values = torch.unique(weight[mask])
    if values.numel() > 2**MAX_BITS:
        values = fit_codebook(sort_values(weight[mask]), 2**MAX_BITS).centroids
    return encode(weight, mask, values)
