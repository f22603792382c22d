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
    CodedTensor,
    CompressedState,
    SideGrid,
    WeightTensor,
    coded_tensor,
    round_codebook,
)
from autocompress.network.kernel_tensor import KernelTensor, kernel_levels, kernel_tensor
from autocompress.network.live_network import dense_gradients, set_nonzeros
from autocompress.network.network_state import side_tensors
from autocompress.solver.constants import DEFAULTS


def fine_tuning_steps(total_steps: int, fraction: float = DEFAULTS.fine_tuning_fraction) -> int:
    """Returns how many of the optimizer steps of a run belong to the last phase: all, where there is only one."""
    return max(1, round(fraction * total_steps))


class FineTuning:
    """Trains codebook values and one-dimensional parameters under fixed assignments.

    Attributes:
        coded: the assignments with their latest values.
    """

    def __init__(
        self,
        weights: Sequence[Tensor],
        coded: Sequence[WeightTensor],
        sides: Sequence[Tensor],
        side_grids: Sequence[SideGrid | None],
        total_steps: int,
        relative_step: float = DEFAULTS.fine_tuning_step,
    ) -> None:
        """Puts the assignments into the parameters.

        Args:
            weights: parameters of two or more dimensions.
            coded: their assignments, in the same order.
            sides: one-dimensional parameters.
            side_grids: the grid of each side, or None where it is not rounded before the end.
            total_steps: length of the phase.
            relative_step: Adam's peak step as a part of the root mean square of a layer's codebook values; of the
                one-dimensional tensors as a part of the median of those over the layers.
        """
        self.weights, self.sides, self.side_grids = list(weights), list(sides), list(side_grids)
        self.total_steps, self.step_count = total_steps, 0
        self.codes = [_codes_of(c).to(w.device) for c, w in zip(coded, weights, strict=True)]
        self.index = [codes.flatten().nonzero().flatten() for codes in self.codes]
        self.members = [codes.flatten()[index] - 1 for codes, index in zip(self.codes, self.index, strict=True)]
        self.values = [c.values.clone().to(w.device) for c, w in zip(coded, weights, strict=True)]
        self.latents = [side.detach().float().clone() for side in self.sides]
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
    def coded(self) -> list[WeightTensor]:
        return [
            kernel_tensor(codes - 1, values, tuple(weight.shape)) if values.dim() > 1 else coded_tensor(codes, values)
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
        for weight, index, members, values in zip(self.weights, self.index, self.members, self.values, strict=True):
            set_nonzeros(weight, index, (_rounded(values) if len(values) else values)[members])
        for side, latent, grid in zip(self.sides, self.latents, self.side_grids, strict=True):
            side.copy_(latent if grid is None else grid.round(latent).dense())

    @torch.no_grad()
    def step(self) -> bool:
        """Takes one Adam step from the gradients that the parameters hold; returns False, and skips it, if one of
        them is not finite.

        Raises:
            InvalidInputError: there are no gradients.
        """
        self.step_count += 1
        dense_gradients([*self.weights, *self.sides])
        gradients = [w.grad for w in self.weights] + [s.grad for s in self.sides]
        if all(g is None for g in gradients):
            raise InvalidInputError("the model has no gradients: call compressor.step() before optimizer.zero_grad()")
        finite = all(g is None or _is_finite(g) for g in gradients)
        if finite:
            for values, index, members, weight in zip(self.values, self.index, self.members, self.weights, strict=True):
                values.grad = None
                if weight.grad is not None and values.numel():
                    picked = weight.grad.reshape(-1, *values.shape[1:])[index].float()
                    values.grad = torch.zeros_like(values).index_add_(0, members, picked)
            for latent, side in zip(self.latents, self.sides, strict=True):
                latent.grad = None if side.grad is None else side.grad.float()
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
            "side_grids": [None if grid is None else [grid.step, grid.dead_zone] for grid in self.side_grids],
            "peaks": self.peaks,
            "total_steps": self.total_steps,
            "optimizer": self.optimizer.state_dict(),
        }

    @classmethod
    def from_state_dict(cls, weights: Sequence[Tensor], sides: Sequence[Tensor], state: dict[str, Any]) -> FineTuning:
        """Returns the phase as it was saved."""
        # Of kernels, too: codes and values go in as they are, neither rounded nor closed up.
        coded = [CodedTensor(c, v) for c, v in zip(state["codes"], state["values"], strict=True)]
        grids = [None if grid is None else SideGrid(*grid) for grid in state["side_grids"]]
        phase = cls(weights, coded, sides, grids, state["total_steps"])
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


def _is_finite(gradient: Tensor) -> bool:
    """Tells whether all elements are; their sum tells at once, unless it overflows."""
    return bool(torch.isfinite(gradient.sum())) or bool(torch.isfinite(gradient).all())


def _rounded(values: Tensor) -> Tensor:
    """Returns the values [K] or [K, d] as the file will reproduce them."""
    if values.dim() == 1:
        return round_codebook(values)
    levels, step = kernel_levels(values)
    return levels.to(values) * step


def start_fine_tuning(
    network: Network,
    coded: Sequence[WeightTensor],
    writer: FileWriter,
    total_steps: int,
    relative_step: float = DEFAULTS.fine_tuning_step,
) -> FineTuning:
    """Returns the last phase of a run, with the assignments put into the network.

    Args:
        network: what is compressed.
        coded: one per compressed tensor.
        writer: says how the one-dimensional tensors are rounded. Those of a folded batch norm are not rounded before
            the end, because they change with its statistics.
        total_steps: length of the phase.
        relative_step: see `FineTuning`.
    """
    grids = writer.side_grids(side_tensors(network.selection))
    folded = {f"{name}.{key}" if name else key for name, _ in network.selection.folded for key in ("weight", "bias")}
    side_grids = [None if name in folded else grids[name] for name, _ in network.selection.sides]
    return FineTuning(network.weights, coded, network.sides, side_grids, total_steps, relative_step)


def finished_file(network: Network, finishing: FineTuning, writer: FileWriter) -> tuple[CompressedState, bytes]:
    """Returns the state and the file, within the target, of a network as the last phase left it.

    Raises:
        TrainingDivergedError: a one-dimensional tensor became NaN or infinite.
    """
    sides = side_tensors(network.selection, finishing.latents)
    for name, values in sides.items():
        if not bool(torch.isfinite(values).all()):
            raise TrainingDivergedError(f"{name} became NaN or infinite: the training diverged")
    return writer.fit(finishing.coded, sides)
