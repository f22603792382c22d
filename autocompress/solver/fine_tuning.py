"""The last phase: which weight takes which code is fixed, the codes' values, biases and norms are trained.

The network now holds exactly what the file will hold. A codebook value v_k, of one weight or of a whole kernel, is
shared by all with code k, so its gradient is the sum of theirs; biases are trained through their rounding
(straight-through). The user's optimizer has state for the dense weights, which no longer exist as free variables, so
Adam takes over: its steps do not depend on how many weights share a value. What the user's optimizer did to the
parameters is overwritten.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from autocompress.constraints.constraint import FileWriter, Network
from autocompress.errors import InvalidInputError, TrainingDivergedError
from autocompress.network.compressed_tensors import (
    CompressedState,
    QuantizedTensor,
    VectorGrid,
    WeightTensor,
    quantized_tensor,
    round_codebook,
)
from autocompress.network.kernel_tensor import KernelTensor, kernel_levels, kernel_tensor
from autocompress.network.live_network import dense_gradients
from autocompress.network.network_state import vector_tensors
from autocompress.solver.constants import DEFAULTS


def fine_tuning_steps(total_steps: int, fraction: float = DEFAULTS.fine_tuning_fraction) -> int:
    """Returns how many of the optimizer steps of a run belong to the last phase: all, where there is only one."""
    return max(1, round(fraction * total_steps))


class FineTuning:
    """Trains codebook values and one-dimensional parameters under fixed assignments.

    Attributes:
        quantized: the assignments with their latest values.
    """

    def __init__(
        self,
        weights: Sequence[Tensor],
        quantized: Sequence[WeightTensor],
        vectors: Sequence[Tensor],
        vector_grids: Sequence[VectorGrid | None],
        total_steps: int,
        relative_step: float = DEFAULTS.fine_tuning_step,
    ) -> None:
        """Puts the assignments into the parameters.

        Args:
            weights: parameters of two or more dimensions.
            quantized: their assignments, in the same order.
            vectors: one-dimensional parameters.
            vector_grids: the grid of each vector, or None where it is not rounded before the end.
            total_steps: length of the phase.
            relative_step: Adam's peak step as a part of the root mean square of a layer's codebook values; of the
                one-dimensional tensors as a part of the median of those over the layers.
        """
        self.weights, self.vectors, self.vector_grids = list(weights), list(vectors), list(vector_grids)
        self.total_steps, self.step_count = total_steps, 0
        self.codes = [_codes_of(c).to(w.device) for c, w in zip(quantized, weights, strict=True)]
        self.index = [codes.flatten().nonzero().flatten() for codes in self.codes]
        self.values = [c.values.clone().to(w.device) for c, w in zip(quantized, weights, strict=True)]
        self.latents = [vector.detach().float().clone() for vector in self.vectors]
        self.start = [v.clone() for v in self.values + self.latents]
        sizes = [float(v.square().mean().sqrt()) for v in self.values if v.numel()]
        typical = sorted(sizes)[len(sizes) // 2] if sizes else 0.1
        steps = [float(v.square().mean().sqrt()) if v.numel() else typical for v in self.values]
        steps += [typical] * len(self.latents)
        self.optimizer = torch.optim.Adam(
            [{"params": [p], "lr": relative_step * s} for p, s in zip(self.values + self.latents, steps, strict=True)]
        )
        self.peaks = [float(group["lr"]) for group in self.optimizer.param_groups]
        self.write()

    @property
    def quantized(self) -> list[WeightTensor]:
        return [
            kernel_tensor(codes - 1, values, tuple(weight.shape))
            if values.dim() > 1
            else quantized_tensor(codes, values)
            for weight, codes, values in zip(self.weights, self.codes, self.values, strict=True)
        ]

    @torch.no_grad()
    def rewind(self) -> None:
        """Goes back to the values that the phase began with."""
        for mine, start in zip(self.values + self.latents, self.start, strict=True):
            mine.copy_(start)
        self.write()

    @torch.no_grad()
    def write(self) -> None:
        """Overwrites the parameters with the values the file would reproduce."""
        for weight, codes, values in zip(self.weights, self.codes, self.values, strict=True):
            table = torch.cat([torch.zeros_like(values[:1]), _rounded(values)]) if len(values) else values.new_zeros(1)
            weight.copy_(table[codes].view(weight.shape))
        for vector, latent, grid in zip(self.vectors, self.latents, self.vector_grids, strict=True):
            vector.copy_(latent if grid is None else grid.round(latent).dense())

    @torch.no_grad()
    def step(self) -> bool:
        """Takes one Adam step from the gradients that the parameters hold; returns False, and skips it, if one of
        them is not finite.

        Raises:
            InvalidInputError: there are no gradients.
        """
        self.step_count += 1
        dense_gradients([*self.weights, *self.vectors])
        gradients = [w.grad for w in self.weights] + [s.grad for s in self.vectors]
        if all(g is None for g in gradients):
            raise InvalidInputError("the model has no gradients: call compressor.step() before optimizer.zero_grad()")
        finite = all(g is None or bool(torch.isfinite(g).all()) for g in gradients)
        if finite:
            for values, index, codes, weight in zip(self.values, self.index, self.codes, self.weights, strict=True):
                values.grad = None
                if weight.grad is not None and values.numel():
                    picked = weight.grad.float().reshape(-1, *values.shape[1:])[index]
                    values.grad = torch.zeros_like(values).index_add_(0, codes.flatten()[index] - 1, picked)
            for latent, vector in zip(self.latents, self.vectors, strict=True):
                latent.grad = None if vector.grad is None else vector.grad.float()
            decay = 0.5 * (1 + math.cos(math.pi * min(1.0, self.step_count / self.total_steps)))
            for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
                group["lr"] = peak * decay
            self.optimizer.step()
        self.write()
        return finite

    def state_dict(self) -> dict[str, Any]:
        return {
            "step_count": self.step_count,
            "shapes": [list(weight.shape) for weight in self.weights],
            "codes": [codes.to(torch.int16) for codes in self.codes],
            "values": self.values,
            "latents": self.latents,
            "start": self.start,
            "vector_grids": [None if grid is None else [grid.step, grid.dead_zone] for grid in self.vector_grids],
            "peaks": self.peaks,
            "total_steps": self.total_steps,
            "optimizer": self.optimizer.state_dict(),
        }

    @classmethod
    def from_state_dict(cls, weights: Sequence[Tensor], vectors: Sequence[Tensor], state: dict[str, Any]) -> FineTuning:
        """Returns the phase as it was saved."""
        # Of kernels, too: codes and values go in as they are, neither rounded nor closed up.
        quantized = [QuantizedTensor(c, v) for c, v in zip(state["codes"], state["values"], strict=True)]
        grids = [None if grid is None else VectorGrid(*grid) for grid in state["vector_grids"]]
        phase = cls(weights, quantized, vectors, grids, state["total_steps"])
        phase.step_count = state["step_count"]
        for mine, saved in zip(phase.latents + phase.start, state["latents"] + state["start"], strict=True):
            mine.copy_(saved)
        phase.optimizer.load_state_dict(state["optimizer"])
        phase.peaks = list(state["peaks"])
        phase.write()
        return phase


def _codes_of(tensor: WeightTensor) -> Tensor:
    """Returns the codes, int64: 0 for a zero and k for the k-th value; no kernel is a zero of its own."""
    codes = tensor.codes.long()
    return codes + 1 if isinstance(tensor, KernelTensor) else codes


def _rounded(values: Tensor) -> Tensor:
    """Returns the values [K] or [K, d] as the file will reproduce them."""
    if values.dim() == 1:
        return round_codebook(values)
    levels, step = kernel_levels(values)
    return levels.to(values) * step


def start_fine_tuning(
    network: Network,
    quantized: Sequence[WeightTensor],
    writer: FileWriter,
    total_steps: int,
    relative_step: float = DEFAULTS.fine_tuning_step,
) -> FineTuning:
    """Returns the last phase of a run, with the assignments put into the network.

    Args:
        network: what is compressed.
        quantized: one per compressed tensor.
        writer: says how the one-dimensional tensors are rounded. Those of a folded batch norm are not rounded before
            the end, because they change with its statistics.
        total_steps: length of the phase.
        relative_step: see `FineTuning`.
    """
    grids = writer.vector_grids(vector_tensors(network.selection))
    folded = {f"{name}.{key}" if name else key for name, _ in network.selection.folded for key in ("weight", "bias")}
    vector_grids = [None if name in folded else grids[name] for name, _ in network.selection.vectors]
    return FineTuning(network.weights, quantized, network.vectors, vector_grids, total_steps, relative_step)


def finished_file(network: Network, finishing: FineTuning, writer: FileWriter) -> tuple[CompressedState, bytes]:
    """Returns the state and the file, within the target, of a network as the last phase left it.

    Raises:
        TrainingDivergedError: a one-dimensional tensor became NaN or infinite.
    """
    vectors = vector_tensors(network.selection, finishing.latents)
    for name, values in vectors.items():
        if not bool(torch.isfinite(values).all()):
            raise TrainingDivergedError(f"{name} became NaN or infinite: the training diverged")
    return writer.fit(finishing.quantized, vectors)
