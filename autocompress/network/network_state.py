"""From assignments and a network to the state that a file holds, and back into a network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from autocompress.errors import InvalidInputError
from autocompress.network.compressed_tensors import (
    CompressedState,
    GridTensor,
    QuantizedTensor,
    VectorGrid,
    WeightTensor,
    quantized_tensor,
)
from autocompress.network.live_network import copy_network, named_modules, named_tensors
from autocompress.network.selection import Selection, folded_parameters, nonzero_per_slice

# A bias is rounded more finely than the weights by this factor: the weights' own step at the multiplier, divided by it.
BIAS_REFINEMENT = 2.0
# Where nothing fits any more the multiplier has no bound; steps stay finite.
MAX_MULTIPLIER = 1e12
# What a bias that is not zero costs in bits: it has to be worth them at the multiplier.
BIAS_BITS = 5.0
# No one-dimensional tensor is rounded more finely than its largest magnitude over this, ...
MAX_VECTOR_LEVELS = 2048.0
# ... and no norm parameter more coarsely than over this; between them it follows the weights' relative error. With the
# statistics folded in, the scales of one norm differ by factors of tens: at a hundredth of the largest, ResNet-20
# pruned and quantized at once to 54 KB has 82.9 % on CIFAR-10, at a thousandth 88.3 %, unrounded 88.9 %.
MIN_NORM_LEVELS = 256.0
NORM_REFINEMENT = 256.0


def uniform_step(multiplier: float) -> float:
    """Returns the uniform step whose error falls by `multiplier` per bit: step^2 / 12 = multiplier / (2 ln 2)."""
    return math.sqrt(6 * multiplier / math.log(2))


def norm_parameters(model: nn.Module) -> set[str]:
    """Returns the names of the one-dimensional parameters that belong to a normalization layer."""
    kinds = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
    return {
        f"{name}.{key}" if name else key
        for name, module in named_modules(model)
        if isinstance(module, kinds)
        for key, _ in module.named_parameters(recurse=False)
    }


def vector_tensors(selection: Selection, latents: Sequence[Tensor] | None = None) -> dict[str, Tensor]:
    """Returns the one-dimensional tensors as the file is to hold them: batch norms folded, not yet rounded."""
    values = latents if latents is not None else [parameter.detach() for _, parameter in selection.vectors]
    tensors = {name: value.detach().float() for (name, _), value in zip(selection.vectors, values, strict=True)}
    for name, norm in selection.folded:
        weight, bias = folded_parameters(norm)
        prefix = f"{name}." if name else ""
        tensors[f"{prefix}weight"], tensors[f"{prefix}bias"] = weight, bias
    return tensors


def vector_grids(
    tensors: Mapping[str, Tensor], norms: set[str], multiplier: float, relative_error: float, coarsening: float = 1.0
) -> dict[str, VectorGrid]:
    """Returns the grid of each one-dimensional tensor.

    Args:
        tensors: the values to be rounded.
        norms: which of them scale or shift a normalized output: rounded in proportion to their own size, because
            their size says nothing about the multiplier, which is in squared weights.
        multiplier: squared error per bit that the weights were projected at.
        relative_error: ||V - X|| / ||X|| of the weights.
        coarsening: factor on all steps.
    """
    grids = {}
    multiplier = min(max(multiplier, 0.0), MAX_MULTIPLIER)
    for name, tensor in tensors.items():
        largest = float(tensor.abs().max()) if tensor.numel() else 0.0
        if name in norms:
            part = min(max(relative_error / NORM_REFINEMENT, 1 / MAX_VECTOR_LEVELS), 1 / MIN_NORM_LEVELS)
            grids[name] = VectorGrid(max(largest * part * coarsening, 1e-30))
        else:
            step = max(largest / MAX_VECTOR_LEVELS, uniform_step(multiplier) / BIAS_REFINEMENT, 1e-30)
            grids[name] = VectorGrid(step * coarsening, math.sqrt(BIAS_BITS * multiplier) * coarsening)
    return grids


def build_state(
    model: nn.Module,
    selection: Selection,
    quantized: Sequence[WeightTensor],
    vectors: Mapping[str, Tensor],
    grids: Mapping[str, VectorGrid],
) -> CompressedState:
    """Returns the state of the network with these assignments; all tensors on the CPU.

    Args:
        model: gives the tensors that are kept as they are.
        selection: of that model.
        quantized: one per `selection.weights`.
        vectors: as `vector_tensors` returns them.
        grids: the grid of each.
    """
    state = named_tensors(model)
    folded = _folded_statistics(selection)
    raw: dict[str, Tensor] = {}
    for name in selection.raw:
        tensor = state[name].detach().cpu().clone()
        if name in folded:
            ones = name.endswith("running_var") or name in selection.masks.values()
            tensor = torch.ones_like(tensor) if ones else torch.zeros_like(tensor)
        raw[name] = tensor
    masks = {name: state[mask].detach().cpu() for name, mask in selection.masks.items()}
    grid = {
        name: grids[name].round(tensor.cpu() * masks[name] if name in masks else tensor.cpu())
        for name, tensor in vectors.items()
    }
    names = [name for name, _ in selection.weights]
    return CompressedState(
        quantized={n: _masked(c.cpu(), masks.get(n)) for n, c in zip(names, quantized, strict=True)},
        grid=grid,
        raw=raw,
        aliases=dict(selection.aliases),
    )


def _masked(tensor: WeightTensor, mask: Tensor | None) -> WeightTensor:
    """Returns a tensor with zeros where a mask has them."""
    if mask is None:
        return tensor
    if isinstance(tensor, QuantizedTensor):
        return quantized_tensor(torch.where(mask != 0, tensor.codes, 0), tensor.values)
    raise InvalidInputError(
        "codebooks of kernels have no zeros of their own for the mask of a pruned layer; call "
        "torch.nn.utils.prune.remove on it, or leave it out with ignore="
    )


def _folded_statistics(selection: Selection) -> set[str]:
    """Returns the names of the statistics and masks that have moved into weight and bias."""
    keys = ("running_mean", "running_var", "num_batches_tracked")
    names = {f"{name}.{key}" if name else key for name, _ in selection.folded for key in keys}
    return names | set(selection.masks.values())


def _changing(model: nn.Module) -> set[str]:
    """Returns the names of the tensors that training changes, beside those that are compressed or rounded."""
    tensors = named_tensors(model)
    changing = {name for name, tensor in tensors.items() if tensor.requires_grad or tensor.numel() == 1}
    for name, module in named_modules(model):
        if isinstance(module, nn.modules.batchnorm._NormBase):
            changing |= {f"{name}.{key}" if name else key for key in ("running_mean", "running_var")}
    return changing


def empty_state(model: nn.Module, selection: Selection) -> CompressedState:
    """Returns the state whose file is the smallest: every quantized and rounded tensor is zero.

    Tensors that are kept as they are but change until the end count at their worst, as random bytes: those that are
    trained, the statistics of norms, counters of one element, and floating-point buffers with nothing in them yet (all
    elements equal). Other buffers, such as masks and tables, count as they are.
    """
    quantized: list[WeightTensor] = []
    for name, weight in selection.weights:
        empty = QuantizedTensor(torch.zeros(weight.shape, dtype=torch.int16), torch.zeros(0))
        dim = selection.normalized.get(name)
        quantized.append(empty if dim is None else nonzero_per_slice(empty, weight.detach().cpu(), dim))
    vectors = {name: torch.zeros(p.shape) for name, p in selection.vectors}
    state = build_state(model, selection, quantized, vectors, dict.fromkeys(vectors, VectorGrid(1.0)))
    folded = _folded_statistics(selection)
    changing = _changing(model) - folded
    generator = torch.Generator().manual_seed(0)
    for name, tensor in state.raw.items():
        blank = tensor.is_floating_point() and tensor.numel() > 1 and bool((tensor == tensor.flatten()[0]).all())
        if (name in changing or (blank and name not in folded)) and tensor.dtype != torch.bool:
            size = tensor.numel() * tensor.element_size()
            noise = torch.randint(256, (size,), dtype=torch.uint8, generator=generator)
            state.raw[name] = noise.view(tensor.dtype).reshape(tensor.shape)
    return state


def zero_state(state: CompressedState) -> CompressedState:
    """Returns a state with all quantized and rounded tensors at zero, the rest as it is."""
    quantized: dict[str, WeightTensor] = {
        n: QuantizedTensor(torch.zeros(c.shape, dtype=torch.int16), torch.zeros(0)) for n, c in state.quantized.items()
    }
    grid = {n: GridTensor(torch.zeros_like(g.levels), 1.0) for n, g in state.grid.items()}
    return CompressedState(quantized, grid, state.raw, state.aliases)


@torch.no_grad()
def fill(model: nn.Module, state: CompressedState, tensors: Mapping[str, Tensor] | None = None) -> nn.Module:
    """Puts exactly the state's values into a network's tensors and returns it, in evaluation mode.

    Args:
        model: the network.
        state: the values.
        tensors: those of the network that are filled, by their names in the state; default: all.
    """
    dense = state.dense()
    for name, tensor in (named_tensors(model) if tensors is None else tensors).items():
        values = dense[name].view(tensor.shape)
        if any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True)):
            tensor.data = values.to(tensor.device, tensor.dtype)  # an expanded buffer cannot be written into
        else:
            tensor.copy_(values)
    return model.eval()


def filled_copy(model: nn.Module, state: CompressedState) -> nn.Module:
    """Returns a copy of the network, wrappers removed, with the state's values."""
    return fill(copy_network(model), state)
