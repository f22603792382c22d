"""Which tensors of a network are compressed, which are rounded, and which are kept as they are."""

from __future__ import annotations

import difflib
import fnmatch
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from autocompress.errors import InvalidInputError
from autocompress.network.compressed_tensors import QuantizedTensor, WeightTensor, quantized_tensor
from autocompress.network.live_network import (
    extra_entries,
    named_modules,
    named_parameters,
    named_tensors,
    refuse_partial_overlap,
    refuse_unfinished,
    storage_key,
    unwrap,
)

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


def nonzero_per_slice(tensor: WeightTensor, weights: Tensor, dim: int) -> WeightTensor:
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


class NonzeroPerSlice:
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


def with_nonzero_per_slice(
    quantized: Sequence[WeightTensor], weights: Sequence[Tensor], names: Sequence[str], dims: Mapping[str, int]
) -> list[WeightTensor]:
    """Returns quantized tensors of which those that are divided by norms have a nonzero in every part."""
    return [
        nonzero_per_slice(tensor, weight, dims[name]) if name in dims else tensor
        for tensor, weight, name in zip(quantized, weights, names, strict=True)
    ]


Ignore = Sequence[str | type[nn.Module]]


@dataclass(frozen=True)
class Selection:
    """The tensors of a network by what happens to them; every tensor of its state_dict is in exactly one place.

    Attributes:
        weights: (state_dict name, parameter) of two or more dimensions: compressed.
        vectors: (name, parameter) of one dimension, biases and norm parameters: rounded to a grid.
        folded: (module name, batch norm) whose running statistics become part of its weight and bias.
        raw: names kept bit for bit, with the reason.
        aliases: name of a shared tensor -> the name that holds it.
        extra: entries of the state_dict that are no tensors (`get_extra_state`): not in the file.
        masks: name of a compressed or rounded parameter -> the mask of `nn.utils.prune` that is folded into it.
        normalized: name of a compressed parameter that is divided by its norm -> dimension of the norms.
    """

    weights: list[tuple[str, nn.Parameter]]
    vectors: list[tuple[str, nn.Parameter]]
    folded: list[tuple[str, nn.modules.batchnorm._BatchNorm]]
    raw: dict[str, str]
    aliases: dict[str, str]
    extra: list[str] = field(default_factory=list)
    masks: dict[str, str] = field(default_factory=dict)
    normalized: dict[str, int] = field(default_factory=dict)

    @property
    def compressible(self) -> int:
        """Number of elements in the compressed tensors."""
        return sum(parameter.numel() for _, parameter in self.weights)


def original_bytes(model: nn.Module) -> int:
    """Returns 4 bytes per floating-point element of the whole state_dict, shared storage once."""
    tensors = named_tensors(model).values()
    return sum({storage_key(t): 4 * t.numel() for t in tensors if t.is_floating_point()}.values())


def _ignored(model: nn.Module, ignore: Ignore) -> set[str]:
    """Returns the parameter names that `ignore` speaks of, the other names of shared ones included.

    Raises:
        InvalidInputError: a pattern or type that matches nothing, or is neither.
    """
    parameters = dict(named_parameters(model))
    names = list(parameters)
    modules = dict(named_modules(model))
    found: set[str] = set()
    ignore = [ignore] if isinstance(ignore, str) else ignore
    if not isinstance(ignore, Iterable):
        raise InvalidInputError(f"ignore is {ignore!r}; it must be a list of globs over names or torch.nn.Module types")
    for item in ignore:
        if isinstance(item, str):
            hits = {name for name in names if fnmatch.fnmatchcase(name, item)}
            prefixes = [name for name in modules if name and fnmatch.fnmatchcase(name, item)]
        elif isinstance(item, type) and issubclass(item, nn.Module):
            hits, prefixes = set(), [name for name, module in modules.items() if isinstance(module, item)]
        else:
            raise InvalidInputError(f"ignore has {item!r}; each entry is a glob over names or a torch.nn.Module type")
        hits |= {name for name in names for prefix in prefixes if name.startswith(prefix + ".") or not prefix}
        if not hits:
            close = difflib.get_close_matches(str(item), [*names, *modules], n=3, cutoff=0.4)
            hint = f"; close to it: {', '.join(close)}" if close else f"; names are such as {', '.join(names[:3])}"
            raise InvalidInputError(f"ignore has {item!r}, which matches no parameter of the model{hint}")
        found |= hits
    tensors = {id(parameters[name]) for name in found}
    return {name for name, parameter in parameters.items() if id(parameter) in tensors}


def select(model: nn.Module, ignore: Ignore = ()) -> Selection:
    """Returns what happens to each tensor of a network.

    Args:
        model: the network, wrapped or not.
        ignore: globs over parameter and module names, or module types, to keep out of compression. Frozen parameters
            are kept out as well, unless all are frozen.

    Raises:
        InvalidInputError: `ignore` matches nothing, or nothing is left to compress.
    """
    model = unwrap(model)
    refuse_unfinished(model)
    parameters = dict(named_parameters(model))
    kept = dict.fromkeys(_ignored(model, ignore), "ignored")
    frozen = [name for name, parameter in parameters.items() if not parameter.requires_grad]
    if len(frozen) < len(parameters):  # else nothing is trained at all, which says nothing about any one of them
        kept = dict.fromkeys(frozen, "frozen: requires_grad is False") | kept
    owners = Counter(id(tensor) for module in model.modules() for tensor in _own_tensors(module))
    folded = [
        (name, module)
        for name, module in _once(named_modules(model))
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and _can_fold(name, module, set(kept), owners)
    ]
    statistics = {f"{name}.{key}" if name else key for name, _ in folded for key in ("running_mean", "running_var")}
    first: dict[tuple[object, ...], str] = {}
    result = Selection([], [], folded, {}, {}, extra_entries(model))
    tensors = named_tensors(model)
    refuse_partial_overlap(tensors)
    for name, tensor in tensors.items():
        holder = first.setdefault(storage_key(tensor), name)
        parameter = parameters.get(name)
        if holder != name:
            result.aliases[name] = holder
        elif name in statistics:
            result.raw[name] = "folded into the norm's weight and bias"
        elif parameter is None:
            result.raw[name] = "buffer"
        elif name in kept:
            result.raw[name] = kept[name]
        elif not parameter.is_floating_point() or parameter.dim() == 0 or not parameter.numel():
            result.raw[name] = f"{str(parameter.dtype).removeprefix('torch.')} of {parameter.dim()} dimensions"
        elif parameter.dim() == 1:
            result.vectors.append((name, parameter))
        else:
            result.weights.append((name, parameter))
        if name in parameters and name not in result.aliases:
            _check_has_values(name, parameters[name])
    mine = {name for name, _ in [*result.weights, *result.vectors]}
    for name, mask in prune_masks(named_modules(model)).items():
        if name in mine and result.raw.get(mask) == "buffer":
            result.masks[name], result.raw[mask] = mask, "folded into what it masks"
    result.normalized.update({name: dim for name, dim in normalized(named_modules(model)).items() if name in mine})
    if not result.weights:
        raise InvalidInputError(
            f"the model has nothing to compress: none of its {len(parameters)} parameters is a floating-point tensor "
            f"of two or more dimensions{' that is not ignored or frozen' if kept else ''}"
        )
    return result


# Squares of larger magnitudes are no float32 numbers.
MAX_WEIGHT = 1e18


def check_trainable(selection: Selection) -> None:
    """Checks that the tensors to be compressed are those of a trained network, in a type that can be trained.

    Raises:
        InvalidInputError: NaN, infinite or enormous values, or float16: naming the tensor.
    """
    for name, parameter in [*selection.weights, *selection.vectors]:
        if parameter.dtype == torch.float16:
            raise InvalidInputError(
                f"{name} is float16, in which a step of training is lost or overflows; give model.float() (and float32 "
                "inputs): the file does not grow, and load() fills a float16 network as well"
            )
        if not bool(torch.isfinite(parameter).all()):
            raise InvalidInputError(f"{name} holds NaN or infinite values; give a trained network")
        if not is_moderate(parameter):
            raise InvalidInputError(
                f"{name} holds values of {float(parameter.detach().abs().max()):.1e}; give a trained network"
            )


def is_moderate(tensor: Tensor) -> bool:
    """Tells whether all values of a tensor are finite and small enough to be squared in float32."""
    return bool((tensor.abs() <= MAX_WEIGHT).all())


def _check_has_values(name: str, parameter: nn.Parameter) -> None:
    """Checks that a parameter is a tensor with values in memory.

    Raises:
        InvalidInputError: it is lazy, on the meta device, or a shard or another wrapper of tensors.
    """
    if parameter.device.type == "meta":
        raise InvalidInputError(f"{name} is on the meta device and has no values; load the weights into the network")
    if is_traceable_wrapper_subclass(parameter):
        raise InvalidInputError(
            f"{name} is a {type(parameter.data).__name__}, not a plain tensor; gather the network's tensors (of "
            "FSDP: full_tensor()) into a plain module"
        )


def _once(modules: Iterable[tuple[str, nn.Module]]) -> Iterator[tuple[str, nn.Module]]:
    """Yields each module under the first of its names."""
    seen: set[int] = set()
    for name, module in modules:
        if id(module) not in seen:
            seen.add(id(module))
            yield name, module


def _own_tensors(module: nn.Module) -> list[Tensor]:
    """Returns the parameters and buffers of a module itself."""
    return [tensor for tensor in [*module._parameters.values(), *module._buffers.values()] if tensor is not None]


def _can_fold(name: str, norm: nn.modules.batchnorm._BatchNorm, ignored: set[str], owners: Mapping[int, int]) -> bool:
    """Tells whether a batch norm's statistics can move into its own weight and bias, neither shared nor ignored."""
    if not norm.track_running_stats or norm.weight is None or norm.bias is None or norm.running_mean is None:
        return False
    own = {f"{name}.{key}" if name else key for key in ("weight", "bias")}
    return not own & ignored and all(owners[id(tensor)] == 1 for tensor in _own_tensors(norm))


@torch.no_grad()
def folded_parameters(norm: nn.modules.batchnorm._BatchNorm) -> tuple[Tensor, Tensor]:
    """Returns weight and bias [C] that do, with running mean 0 and variance 1, what the norm does in evaluation.

    y = weight * (x - mean) / sqrt(var + eps) + bias = weight' * x / sqrt(1 + eps) + bias'.
    """
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    scale = norm.weight.double() / torch.sqrt(variance + norm.eps)
    weight = scale * (1 + norm.eps) ** 0.5
    return weight.float(), (norm.bias.double() - mean * scale).float()
