"""Parameters that a module does not use as they are: pruned by a mask, or divided by their norm."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from autocompress.network.compressed_tensors import QuantizedTensor, WeightTensor, quantized_tensor

# A norm of the whole tensor, where others have the dimension that their norms keep.
WHOLE = -1


def prune_masks(modules: Iterable[tuple[str, nn.Module]]) -> dict[str, str]:
    """Returns parameter name -> mask name of what `torch.nn.utils.prune` has pruned."""
    found = {}
    for name, module in modules:
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, BasePruningMethod):
                prefix = f"{name}.{hook._tensor_name}" if name else str(hook._tensor_name)
                found[f"{prefix}_orig"] = f"{prefix}_mask"
    return found


def normalized(modules: Iterable[tuple[str, nn.Module]]) -> dict[str, int]:
    """Returns the parameters that are divided by their norm, with the dimension along which each part has its own.

    Weight norm, which has one norm per row (or one in all: `WHOLE`), and spectral norm, old and new. A part without any
    weight that is not zero gives 0 / 0. The power iteration of spectral norm ends at 0 as well where its vector has met
    only rows without weights.
    """
    found = {}
    for name, module in modules:
        prefix = f"{name}." if name else ""
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, WeightNorm):
                found[f"{prefix}{hook.name}_v"] = hook.dim
            elif isinstance(hook, SpectralNorm):
                found[f"{prefix}{hook.name}_orig"] = hook.dim
        for key, steps in getattr(module, "parametrizations", {}).items():
            for step in steps:
                if isinstance(step, parametrizations._WeightNorm):
                    found[f"{prefix}parametrizations.{key}.original1"] = step.dim
                elif isinstance(step, parametrizations._SpectralNorm):
                    found[f"{prefix}parametrizations.{key}.original"] = step.dim
    return found


def parts(shape: Sequence[int], dim: int) -> Tensor:
    """Returns the flat indices, int64 [parts, n], of the elements of each part of a tensor with a norm of its own."""
    index = torch.arange(torch.Size(shape).numel()).view(tuple(shape))
    return index.view(1, -1) if dim == WHOLE else index.movedim(dim, 0).flatten(1)


def keep_parts(tensor: WeightTensor, weights: Tensor, dim: int) -> WeightTensor:
    """Returns a quantized tensor with at least one nonzero in every part.

    A part without one gets that of its weights which points farthest in the direction of one of the codes. How large it
    is does not matter, because the part is divided by it.

    Args:
        tensor: the assignment.
        weights: what it is an assignment of, the same shape.
        dim: of the norms.
    """
    if not isinstance(tensor, QuantizedTensor):
        return tensor
    order = parts(tensor.shape, dim).to(tensor.codes.device)
    codes = tensor.codes.flatten()
    empty = order[~(codes[order] != 0).any(1)]
    if not empty.numel():
        return tensor
    x = weights.detach().flatten().float()[empty]
    values = tensor.values
    if not values.numel():
        scale = float(weights.detach().abs().mean()) or 1.0
        values = values.new_tensor([-scale, scale])
    up, down = bool((values > 0).any()), bool((values < 0).any())
    score = x.abs() if up and down else x if up else -x
    best = score.argmax(1, keepdim=True)
    chosen = x.gather(1, best)
    positive = (chosen >= 0) if up and down else torch.full_like(chosen, up, dtype=torch.bool)
    distance = (chosen - values).abs().masked_fill((values > 0) != positive, torch.inf)
    codes = codes.clone()
    codes[empty.gather(1, best).flatten()] = (distance.argmin(1) + 1).to(codes.dtype)
    return quantized_tensor(codes.view(tensor.shape), values)


class KeepsParts:
    """A rule of V between two projections that leaves no part of a tensor empty."""

    def __init__(
        self, assign: Callable[[Tensor], tuple[Tensor, Tensor]], shape: Sequence[int], dim: int, smallest: float
    ) -> None:
        """Takes what the rule does, its tensor's shape, the dimension of the norms, and the least magnitude to give."""
        self.inner, self.order, self.smallest = assign, parts(shape, dim), smallest
        self.part = torch.empty(self.order.numel(), dtype=torch.int64)
        self.part[self.order.flatten()] = torch.arange(len(self.order)).repeat_interleave(self.order.shape[1])

    def assign(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Returns indices and values of the nonzeros."""
        index, values = self.inner(weights)
        present = torch.zeros(len(self.order), dtype=torch.bool)
        present[self.part[index.cpu()]] = True
        if bool(present.all()):
            return index, values
        missing = self.order[~present].to(weights.device)
        flat = weights.view(-1)
        added = missing.gather(1, flat[missing].abs().argmax(1, keepdim=True)).flatten()
        sign = torch.where(flat[added] < 0, -1.0, 1.0)
        return torch.cat([index, added]), torch.cat([values, sign * flat[added].abs().clamp(min=self.smallest)])


def keep_all_parts(
    quantized: Sequence[WeightTensor], weights: Sequence[Tensor], names: Sequence[str], dims: Mapping[str, int]
) -> list[WeightTensor]:
    """Returns quantized tensors of which those that are divided by norms have a nonzero in every part."""
    return [
        keep_parts(tensor, weight, dims[name]) if name in dims else tensor
        for tensor, weight, name in zip(quantized, weights, names, strict=True)
    ]
